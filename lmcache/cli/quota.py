"""`lmcache quota`: how much of the cache each tenant (`cache_salt`) may keep."""

from __future__ import annotations

from typing import Any

import click

from lmcache.cli.api_client import APIClient, path_of
from lmcache.cli.api_options import json_option, with_api
from lmcache.cli.tables import print_json, print_table, usage_bar
from lmcache.core.keys import check_cache_salt

EMPTY_SALT = "_default"

_salt_argument = click.argument("cache_salt")


@click.group("quota", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Show and set quotas per tenant (cache_salt), in GB of 1024^3 bytes.

    Requests without a salt are the tenant `_default`. Quotas are enforced where the server runs
    --eviction-policy IsolatedLRU: there a tenant without a quota may keep nothing.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command("list")
@with_api
@json_option
def list_quotas(api: APIClient, as_json: bool) -> int:
    """Every tenant with a quota, and what it holds."""
    found = api.get("/quota", "users")
    if as_json:
        print_json(found)
        return 0
    rows = [_row(salt, quota) for salt, quota in found["users"].items()]
    print_table([("CACHE_SALT", "LIMIT GB", "USED GB", "USAGE"), *rows])
    return 0


@command.command("get")
@with_api
@_salt_argument
@json_option
def get_quota(api: APIClient, cache_salt: str, as_json: bool) -> int:
    """One tenant's quota, and what it holds. A tenant without a quota is shown too."""
    found = api.get(_path(cache_salt), "cache_salt", "exists", "limit_gb", "current_usage_gb")
    if as_json:
        print_json(found)
    elif found["exists"]:
        print_table([("CACHE_SALT", "LIMIT GB", "USED GB", "USAGE"), _row(found["cache_salt"], found)])
    else:
        click.echo(f"{found['cache_salt']} has no quota and holds {found['current_usage_gb']:.3f} GB")
    return 0


@command.command("set")
@with_api
@_salt_argument
@click.argument("limit_gb", type=click.FloatRange(min=0))
@json_option
def set_quota(api: APIClient, cache_salt: str, limit_gb: float, as_json: bool) -> int:
    """Give a tenant a quota of LIMIT_GB (1 GB is 1024^3 bytes), or change the one it has."""
    answer = api.call("PUT", _path(cache_salt), body={"limit_gb": limit_gb})
    found = answer.object("cache_salt", "limit_gb")
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found['cache_salt']} may keep {found['limit_gb']:g} GB")
    return 0


@command.command("rm")
@with_api
@_salt_argument
@json_option
def remove_quota(api: APIClient, cache_salt: str, as_json: bool) -> int:
    """Remove a tenant's quota. Exit code 1 if it had none."""
    found = api.call("DELETE", _path(cache_salt)).object("cache_salt", "status")
    is_removed = found["status"] == "removed"
    if as_json:
        print_json(found)
    elif is_removed:
        click.echo(f"the quota of {found['cache_salt']} is removed")
    else:
        click.echo(f"lmcache quota rm: {found['cache_salt']} had no quota", err=True)
    return 0 if is_removed else 1


def _path(cache_salt: str) -> str:
    if not cache_salt:
        raise click.UsageError(f"the empty cache_salt is written {EMPTY_SALT}")
    return path_of("quota", check_cache_salt(cache_salt))


def _row(cache_salt: str, quota: dict[str, Any]) -> tuple[str, str, str, str]:
    limit, used = quota["limit_gb"], quota["current_usage_gb"]
    return cache_salt, f"{limit:g}", f"{used:.3f}", usage_bar(used, limit)
