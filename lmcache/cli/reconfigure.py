"""`lmcache reconfigure`: change an L2 adapter of a running server."""

from __future__ import annotations

import json

import click

from lmcache.cli.api_client import APIClient, path_of
from lmcache.cli.api_options import PATIENT, json_option, with_api
from lmcache.cli.tables import print_json


@click.command("reconfigure", context_settings=PATIENT)
@with_api
@click.argument("backend")
@click.argument("operation")
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--adapter-index", type=click.IntRange(min=0), default=0, show_default=True,
              help="Which adapter of that backend.")  # fmt: skip
@json_option
def command(
    api: APIClient, backend: str, operation: str, fields: tuple[str, ...], adapter_index: int, as_json: bool
) -> int:
    """Apply OPERATION to an adapter of BACKEND, e.g. `mock resize size=1GiB`.

    lmcache adapters lists backends and operations. A VALUE that is JSON (a number, true, a list)
    is sent as such, any other as text.
    """
    if not backend.strip() or not operation.strip():
        raise click.UsageError("BACKEND and OPERATION must not be empty")
    body = {"adapter_index": adapter_index, **dict(_field(field) for field in fields)}
    found = api.call("POST", path_of("reconfigure", backend, operation), body=body).object()
    if as_json:
        click.echo(json.dumps(found))
    else:
        print_json(found)
    return 0


def _field(text: str) -> tuple[str, object]:
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise click.UsageError(f"a field is written NAME=VALUE (got {text!r})")
    if name == "adapter_index":
        raise click.UsageError("adapter_index is given by --adapter-index")
    try:
        return name, json.loads(value, parse_constant=_not_json)
    except ValueError:
        return name, value


def _not_json(name: str) -> object:
    raise ValueError(name)
