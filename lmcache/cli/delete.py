"""`lmcache delete`: remove objects from an L2 adapter, by key."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator

import click

from lmcache.cli.api_client import APIClient
from lmcache.cli.api_options import adapter_option, confirm, json_option, with_api, yes_option
from lmcache.cli.object_keys import KeyFields, check_chunk_hash, keys_of_lines
from lmcache.cli.tables import print_json
from lmcache.errors import LMCacheError

# What the API takes in one request; servers bound bodies at 8 MiB.
_BATCH_KEYS_MAX = 10_000
_BATCH_BYTES_MAX = 4 << 20


def _parse_rank(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A number as `lmcache keys` prints it, or in decimal digits."""
    try:
        return None if value is None else int(value, 0)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number such as 16777472 or 0x01000100") from None


@click.command("delete")
@with_api
@adapter_option
@click.argument("hashes", nargs=-1, metavar="[CHUNK_HASH]...")
@click.option("--model", help="Model of the chunks named.")
@click.option("--kv-rank", callback=_parse_rank, metavar="NUMBER", help="Their rank, as lmcache keys prints it.")
@click.option("--group", type=click.IntRange(min=0), default=0, show_default=True, help="Their object group.")
@click.option("--salt", default="", help="Their cache_salt.")
@yes_option
@json_option
def command(
    api: APIClient, adapter: str | None, hashes: tuple[str, ...], model: str | None, kv_rank: int | None, group: int,
    salt: str, yes: bool, as_json: bool,
) -> int:  # fmt: skip
    """Delete objects from an L2 adapter. L1 is not touched, and may give them back.

    Without CHUNK_HASH keys are read from standard input, in the lines of `lmcache keys --json`, and nothing is
    asked:

    \b
        lmcache keys --model M --json | lmcache delete

    Keys that are not there, or in use, are skipped by the server.
    """
    if hashes:
        names = [check_chunk_hash(text) for text in hashes]
        if model is None or kv_rank is None:
            raise click.UsageError("CHUNK_HASH needs --model and --kv-rank: together they name an object")
        confirm(yes, f"Delete {len(names)} objects of {model} from L2 of {api.url}?")
        common = {"model_name": model, "kv_rank": kv_rank, "object_group_id": group, "cache_salt": salt}
        return _delete(api, adapter, [{"chunk_hash_hex": name, **common} for name in names], as_json)
    if model is not None or kv_rank is not None or group or salt:
        raise click.UsageError("--model, --kv-rank, --group and --salt belong to CHUNK_HASH arguments")
    if sys.stdin.isatty():
        raise click.UsageError("no CHUNK_HASH given; to delete many: lmcache keys --json | lmcache delete")
    return _delete(api, adapter, keys_of_lines(sys.stdin), as_json)


def _delete(api: APIClient, adapter: str | None, keys: Iterable[KeyFields], as_json: bool) -> int:
    """Batch by batch. What stops it says how far it came."""
    num_requested, name, error = 0, adapter or "", ""
    try:
        for batch in _batches(keys):
            answer = api.call("DELETE", "/l2", {"adapter": adapter}, {"keys": batch}).object("adapter", "ok")
            name = answer["adapter"]
            if not answer["ok"]:
                error = str(answer.get("error", "no reason given"))
                break
            num_requested += len(batch)
    except (LMCacheError, click.UsageError):
        if num_requested:
            click.echo(f"lmcache delete: {num_requested} keys were asked for before this:", err=True)
        raise
    if as_json:
        print_json({"requested": num_requested, "adapter": name, "ok": not error} | ({"error": error} if error else {}))
    elif error:
        click.echo(f"lmcache delete: {name} failed after {num_requested} keys: {error}", err=True)
    else:
        click.echo(f"{num_requested} keys asked of {name or 'no adapter'} to be deleted")
    return 1 if error else 0


def _batches(keys: Iterable[KeyFields]) -> Iterator[list[KeyFields]]:
    batch: list[KeyFields] = []
    num_bytes = 0
    for key in keys:
        key_bytes = len(json.dumps(key)) + len(", ")
        if batch and (len(batch) == _BATCH_KEYS_MAX or num_bytes + key_bytes > _BATCH_BYTES_MAX):
            yield batch
            batch, num_bytes = [], 0
        batch.append(key)
        num_bytes += key_bytes
    if batch:
        yield batch
