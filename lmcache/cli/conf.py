"""`lmcache conf`: the settings a running server has in force."""

from __future__ import annotations

from collections.abc import Iterator

import click

from lmcache.cli.api_client import APIClient
from lmcache.cli.api_options import json_option, with_api
from lmcache.cli.tables import print_json, print_table


@click.command("conf")
@with_api
@click.argument("groups", nargs=-1, metavar="[GROUP]...")
@json_option
def command(api: APIClient, groups: tuple[str, ...], as_json: bool) -> int:
    """Show the settings in force, all groups or those named (mp, storage_manager, observability, http, ...)."""
    found = api.get("/conf")
    unknown = [name for name in groups if name not in found]
    if unknown:
        raise click.UsageError(f"no group {unknown[0]!r}; there are: {', '.join(found)}")
    chosen = {name: found[name] for name in groups or found}
    if as_json:
        print_json(chosen)
        return 0
    print_table([("SETTING", "VALUE"), *_flat(chosen)])
    return 0


def _flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Leaves with their dotted names."""
    if isinstance(value, dict) and value:
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, list) and value:
        children = [(str(index), child) for index, child in enumerate(value)]
    else:
        yield name, _shown(value)
        return
    for key, child in children:
        yield from _flat(child, f"{name}.{key}" if name else key)


def _shown(value: object) -> str:
    if value is None or value in ({}, []):
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
