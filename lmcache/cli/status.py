"""`lmcache status`: one page about a running server. A part that a report does not have is left out."""

from __future__ import annotations

from typing import Any

import click

from lmcache.cli.api_client import APIClient
from lmcache.cli.api_options import json_option, with_api
from lmcache.cli.tables import print_json, print_table, usage_bar
from lmcache.core.sizes import format_bytes

_INDENT = "  "
# What adapters call their bytes in use, and their room.
_USED = ("current_size_bytes", "total_bytes_used", "used_bytes", "memory_used_bytes")
_CAPACITY = ("max_capacity_bytes", "total_capacity_bytes", "capacity_bytes", "memory_total_bytes")
_HEALTH = ("is_healthy", "thread_alive")

Report = dict[str, Any]


@click.command("status")
@with_api
@json_option
def command(api: APIClient, as_json: bool) -> int:
    """Show health, L1, workers, sessions, L2 adapters and controllers. Exit code 1 if it is not healthy."""
    report: Report = api.get("/status")
    if as_json:
        print_json(report)
    else:
        _print_engine(report, api.url)
        storage: Report = report.get("storage_manager", {})
        _print_l1(storage.get("l1_manager", {}))
        _print_workers(report.get("cache_context_meta", {}))
        _print_adapters(storage)
        _print_controllers(storage)
    return 0 if report.get("is_healthy") else 1


def _print_engine(report: Report, url: str) -> None:
    health = "healthy" if report.get("is_healthy") else "NOT HEALTHY"
    click.echo(f"{report.get('engine_type', 'server')} at {url}: {health}")
    liveness = report.get("worker_liveness", {})
    facts = [
        ("chunks", _joined(_counted(report, "chunk_size", "tokens"), report.get("hash_algorithm"))),
        ("sessions", _joined(report.get("active_sessions"))),
        ("prefetching", _joined(_counted(report, "active_prefetch_jobs", "jobs"))),
        ("clients", _joined(_counted(liveness, "tracked_instances", "registered"))),
    ]
    _print_facts(facts)


def _print_l1(l1: Report) -> None:
    if not l1:
        return
    used, total = l1.get("memory_used_bytes", 0), l1.get("memory_total_bytes", 0)
    quarantined = l1.get("quarantined_bytes", 0)
    click.echo("\nL1")
    facts = [
        ("problem", str(l1.get("unhealthy_reason") or "")),
        ("memory", f"{usage_bar(used, total)}  {format_bytes(used)} of {format_bytes(total)}"),
        ("objects", _joined(
            l1.get("total_object_count"), _counted(l1, "read_locked_count", "being read"),
            _counted(l1, "write_locked_count", "being written"),
        )),
        ("quarantined", format_bytes(quarantined) if quarantined else ""),
        ("pool", _joined(l1.get("pool_folder"), "still taking memory" if l1.get("is_populating") else None)),
    ]  # fmt: skip
    _print_facts(facts)


def _print_workers(contexts: Report) -> None:
    click.echo("\nworkers" if contexts else "\nno worker is registered")
    if not contexts:
        return
    rows = [("INSTANCE", "MODEL", "RANKS", "LAYERS", "BLOCKS", "TOKENS/BLOCK", "KV/TOKEN", "DTYPE", "FORMAT")]
    for instance_id, meta in sorted(contexts.items(), key=lambda item: int(item[0])):
        layout = meta.get("kv_cache_layout", {})
        groups = layout.get("kernel_groups", [])
        rows.append(
            (
                instance_id, str(meta.get("model_name", "")), str(meta.get("world_size", "")),
                str(layout.get("num_layers", "")), str(layout.get("num_blocks", "")),
                _distinct(groups, "tokens_per_block"), format_bytes(layout.get("cache_size_per_token", 0)),
                _distinct(groups, "dtype").replace("torch.", ""), _distinct(groups, "engine_kv_format"),
            )
        )  # fmt: skip
    print_table(rows, _INDENT)


def _print_adapters(storage: Report) -> None:
    adapters: list[Report] = storage.get("l2_adapters", [])
    if not adapters:
        click.echo("\nno L2 adapter is configured")
        return
    click.echo("\nL2 adapters")
    rows = [("INDEX", "TYPE", "HEALTHY", "USAGE", "DETAILS")]
    for index, adapter in enumerate(adapters):
        used, capacity = _first_of(adapter, _USED), _first_of(adapter, _CAPACITY)
        known = {"type", "is_healthy", *_USED, *_CAPACITY}
        details = [f"{name}={value}" for name, value in adapter.items() if name not in known and _is_plain(value)]
        rows.append(
            (str(index), str(adapter.get("type", "")), _yes_or_no(adapter.get("is_healthy")), _usage(used, capacity),
             " ".join(details))
        )  # fmt: skip
    print_table(rows, _INDENT)


def _print_controllers(storage: Report) -> None:
    found = {name: value for name, value in storage.items() if name.endswith("_controller") and isinstance(value, dict)}
    if not found:
        return
    click.echo("\ncontrollers")
    rows = [("NAME", "HEALTHY", "RUNNING", "DETAILS")]
    for name, report in found.items():
        # Most count what is under way, which is mostly nothing.
        details = [
            f"{key}={value}" for key, value in report.items() if key not in _HEALTH and value and _is_plain(value)
        ]
        health, alive = (_yes_or_no(report.get(key)) for key in _HEALTH)
        rows.append((name.removesuffix("_controller"), health, alive, " ".join(details)))
    print_table(rows, _INDENT)


def _print_facts(facts: list[tuple[str, str]]) -> None:
    for name, text in facts:
        if text:
            click.echo(f"{_INDENT}{name:<12} {text}")


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part not in (None, ""))


def _counted(report: Report, key: str, what: str) -> str | None:
    return f"{report[key]} {what}" if key in report else None


def _distinct(groups: list[Report], key: str) -> str:
    return "/".join(dict.fromkeys(str(group.get(key, "")) for group in groups))


def _first_of(report: Report, names: tuple[str, ...]) -> int | None:
    return next((report[name] for name in names if isinstance(report.get(name), int)), None)


def _usage(used: int | None, capacity: int | None) -> str:
    if used is None:
        return "-"
    return f"{usage_bar(used, capacity)}  {format_bytes(used)}" if capacity else format_bytes(used)


def _is_plain(value: object) -> bool:
    return value is not None and not isinstance(value, dict | list)


def _yes_or_no(value: object) -> str:
    return "-" if value is None else "yes" if value else "NO"
