"""`lmcache keys`: what an L2 adapter holds, page by page, printed as it comes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import click

from lmcache.cli.api_client import APIClient
from lmcache.cli.api_options import adapter_option, json_option, with_api
from lmcache.core.sizes import format_bytes
from lmcache.errors import APIRefusedError

_PAGE_SIZE_MAX = 5000
# Columns of fixed width, since later pages are not known yet; names, which have none, come last.
_LINE = "{:<64}  {:>10}  {:>10}  {:>5}  {}"


@click.command("keys")
@with_api
@adapter_option
@click.option("--model", help="Only keys of this model.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many keys.")
@click.option("--page-size", type=click.IntRange(1, _PAGE_SIZE_MAX), default=500, show_default=True,
              help="Keys asked for at a time.")  # fmt: skip
@json_option
def command(
    api: APIClient, adapter: str | None, model: str | None, limit: int | None, page_size: int, as_json: bool
) -> int:
    """List the keys an L2 adapter holds, one a line.

    With --json each line is an object that `lmcache delete` takes from its standard input. Keys stored or
    deleted meanwhile may be listed or not.
    """
    entries = itertools.islice(_entries(api, adapter, model, min(page_size, limit or page_size)), limit)
    if as_json:
        for entry in entries:
            click.echo(json.dumps(entry))
        return 0
    num_keys, num_bytes = _print_lines(entries)
    click.echo(f"{num_keys} keys, {format_bytes(num_bytes)}", err=True)
    return 0


def _entries(api: APIClient, adapter: str | None, model: str | None, page_size: int) -> Iterator[dict[str, Any]]:
    token: str | None = None
    while True:
        query = {"adapter": adapter, "model_name": model, "page_size": page_size, "page_token": token}
        page = api.get("/l2/keys", "entries", "next_page_token", query=query)
        yield from page["entries"]
        if not page["next_page_token"]:
            return
        if page["next_page_token"] == token:
            raise APIRefusedError(200, f"{api.url} answers with the same page again and again")
        token = page["next_page_token"]


def _print_lines(entries: Iterator[dict[str, Any]]) -> tuple[int, int]:
    num_keys = num_bytes = 0
    for entry in entries:
        if not num_keys:  # not before the server has answered
            click.echo(_LINE.format("CHUNK_HASH", "SIZE", "KV_RANK", "GROUP", "MODEL (CACHE_SALT)"))
        key, size = entry["key"], entry["size_bytes"]
        owner = f"{key['model_name']} ({key['cache_salt']})" if key["cache_salt"] else key["model_name"]
        rank = f"0x{key['kv_rank']:08x}"
        click.echo(_LINE.format(key["chunk_hash_hex"], format_bytes(size), rank, key["object_group_id"], owner))
        num_keys, num_bytes = num_keys + 1, num_bytes + size
    return num_keys, num_bytes
