"""What the server's HTTP API tells of the engines that are registered, against this command line."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from lmcache.cli.api_client import APIClient, APIConfig
from lmcache.cli.doctor.checks_identity import differences, tells_ranks
from lmcache.cli.doctor.findings import Finding, error, note, warning
from lmcache.cli.doctor.subject import Subject
from lmcache.core.sizes import format_bytes
from lmcache.errors import APIRefusedError, ConfigError, LMCacheError, ServerUnavailableError

Report = dict[str, Any]

# What `--dtype` may be called, by the name that layouts tell.
_DTYPES = {
    "bfloat16": "bfloat16", "float16": "float16", "half": "float16", "float32": "float32", "float": "float32",
}  # fmt: skip
_TOKEN_STATUSES = (401, 403)
# One client may hold that much of L1.
_SHARE_OF_POOL = 0.5


def read_status(subject: Subject, url: str, is_asked_for: bool) -> tuple[Report | None, list[Finding]]:
    """The report of GET /status. A guessed URL that does not answer is no finding."""
    config = APIConfig(url, subject.http_token, timeout_s=subject.host.timeout_s, flag_prefix="server-")
    try:
        with APIClient(config) as api:
            return api.get("/status", "storage_manager"), []
    except ConfigError:
        raise
    except LMCacheError as failure:
        return None, [_no_status(failure, url)] if is_asked_for else []


def _no_status(failure: LMCacheError, url: str) -> Finding:
    if isinstance(failure, APIRefusedError) and failure.status in _TOKEN_STATUSES:
        return error(f"{url} refuses GET /status: {failure}", "", "pass --server-token-file FILE")
    if isinstance(failure, ServerUnavailableError):
        why = "the registered engines cannot be compared"
        return error(str(failure), why, "name the server's HTTP API with --server (port 8080 by default)")
    return error(f"{url}: {failure}")


def is_of_pool(report: Report, pool_folder: str) -> bool:
    """Whether this is the report of the server that works on that pool."""
    return bool(_l1(report).get("pool_folder") == pool_folder)


def _l1(report: Report) -> Report:
    found = report.get("storage_manager", {}).get("l1_manager")
    return found if isinstance(found, dict) else {}


def check_health(report: Report) -> Iterator[Finding]:
    if report.get("is_healthy") is False:
        reason = _l1(report).get("unhealthy_reason") or "`lmcache status` tells which part"
        yield error("the server is not healthy", str(reason), "look into its log; restart it")


def check_contexts(subject: Subject, report: Report) -> Iterator[Finding]:
    """Engines share what they stored only where all of this is equal."""
    contexts: dict[str, Report] = report.get("cache_context_meta", {})
    for instance_ids, identity in _engines(report):
        context = contexts[instance_ids[0]]
        name = str(context.get("model_name", ""))
        who = f"instance {instance_ids[0]} serves" if len(instance_ids) == 1 else (
            f"instances {', '.join(instance_ids)} serve"
        )  # fmt: skip
        if name == subject.command.model:
            found = [*_differences(subject, context, identity)]
            if found:
                yield warning(
                    f"{who} {name} with {', '.join(found)}",
                    "engines that differ in these share nothing", "start both alike, if they are to share",
                )  # fmt: skip
            yield from _check_prompt_fits(subject, context, report)
        elif _is_same_elsewhere(name, subject.command.model):
            yield note(
                f"{who} {name}, this one {subject.command.model}",
                "the name of a model as it is written is part of every key", "write it alike, if they are to share",
            )  # fmt: skip


def _engines(report: Report) -> Iterator[tuple[list[str], Report]]:
    """Instance ids of each registered engine, and its identity; one by one where the server does not tell."""
    left = sorted(report.get("cache_context_meta", {}), key=lambda name: (len(name), name))
    for identity in report.get("engine_identities", []):
        ids = [name for name in map(str, identity.get("instance_ids", [])) if name in left]
        left = [name for name in left if name not in ids]
        if ids:
            yield ids, identity
    for name in left:
        yield [name], {}


def _differences(subject: Subject, context: Report, identity: Report) -> Iterator[str]:
    """As `theirs, not ours`; only what the command line says can differ."""
    command = subject.command
    theirs = context.get("world_size")
    if theirs != command.num_ranks and not tells_ranks(identity):
        yield f"{theirs} ranks (not {command.num_ranks})"
    yield from differences(subject, identity)
    for group in context.get("kv_cache_layout", {}).get("kernel_groups", [])[:1]:
        tokens = group.get("tokens_per_block")
        if command.block_size not in (None, tokens):
            yield f"blocks of {tokens} tokens (not {command.block_size})"
        ours, dtype = _dtype(subject), str(group.get("dtype", "")).removeprefix("torch.")
        if ours and dtype and ours != dtype:
            yield f"KV of {dtype} (not {ours})"


def _dtype(subject: Subject) -> str | None:
    """Of the KV, where the command line decides it."""
    flags = subject.command.flags
    if flags.get("kv-cache-dtype", "auto") != "auto":
        return _DTYPES.get(flags["kv-cache-dtype"])
    return _DTYPES.get(flags.get("dtype", "auto"))


def _is_same_elsewhere(theirs: str, ours: str) -> bool:
    """The same last part of a path, such as `Llama-3.1-8B` of a folder and of a hub's name."""
    return bool(ours) and pathlib.PurePath(theirs).name == pathlib.PurePath(ours).name


def _check_prompt_fits(subject: Subject, context: Report, report: Report) -> Iterator[Finding]:
    if "max-model-len" not in subject.command.flags:
        return
    try:
        num_tokens = subject.command.number("max-model-len")
    except ConfigError:  # such as 128k, which vLLM reads
        return
    per_token = int(context.get("kv_cache_layout", {}).get("cache_size_per_token", 0)) * int(context["world_size"])
    held_bytes = _SHARE_OF_POOL * int(_l1(report).get("memory_total_bytes", 0))
    if 0 < held_bytes < num_tokens * per_token:
        yield warning(
            f"a prompt of --max-model-len {num_tokens} takes {format_bytes(num_tokens * per_token)}",
            f"one engine may hold half of the server's L1 at once, {format_bytes(int(held_bytes))}",
            "give the server a larger --l1-size-gb, or expect the longest prompts to hit in part",
        )
