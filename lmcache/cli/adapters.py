"""`lmcache adapters`: the L2 adapters of a running server, and which of them can be reconfigured."""

from __future__ import annotations

import click

from lmcache.cli.api_client import APIClient, path_of
from lmcache.cli.api_options import json_option, with_api
from lmcache.cli.tables import print_json, print_table


@click.command("adapters")
@with_api
@json_option
def command(api: APIClient, as_json: bool) -> int:
    """List L2 adapters (what --adapter takes), and the backends that lmcache reconfigure takes."""
    adapters = api.get("/l2/adapters", "adapters")["adapters"]
    names = api.get("/reconfigure/backends", "backends")["backends"]
    backends = {name: api.get(path_of("reconfigure", name, "status"), "adapters")["adapters"] for name in names}
    if as_json:
        print_json({"adapters": adapters, "reconfigurable": backends})
        return 0
    if not adapters:
        click.echo(f"{api.url} has no L2 adapters")
        return 0
    rows = [(str(item["index"]), item["type_name"], "yes" if item["primary"] else "") for item in adapters]
    print_table([("INDEX", "TYPE", "PRIMARY"), *rows])
    if backends:
        click.echo()
        entries = [
            (name, str(entry["adapter_index"]), ", ".join(entry.get("supported_operations", ())))
            for name, found in backends.items()
            for entry in found
        ]
        print_table([("BACKEND", "ADAPTER_INDEX", "OPERATIONS"), *entries])
    return 0
