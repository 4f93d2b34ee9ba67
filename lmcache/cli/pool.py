"""`lmcache pool`: what this user's pools hold, and their removal."""

from __future__ import annotations

import dataclasses
import json

import click


@click.group("pool", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List and remove the shared-memory pools of this user."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
def list_pools(as_json: bool) -> None:
    """Every pool, its size, its objects, and who uses it."""
    from lmcache.cli.tables import print_table
    from lmcache.core.sizes import format_bytes
    from lmcache.server.pools import own_pools

    pools = own_pools()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(pool) for pool in pools], indent=2))
        return
    rows = [("NAME", "SIZE", "OBJECTS", "SERVER", "CLIENTS")]
    rows += [
        (pool.name, format_bytes(pool.size_bytes), str(pool.num_objects), "running" if pool.is_held else "none",
         str(pool.num_clients))
        for pool in pools
    ]  # fmt: skip
    print_table(rows)


@command.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def remove_pools(names: tuple[str, ...]) -> None:
    """Delete pools that no server holds, with all that is in them."""
    from lmcache.core.sizes import format_bytes
    from lmcache.server.pools import remove_pool

    for name in names:
        click.echo(f"removed pool {name}, {format_bytes(remove_pool(name))} freed")
