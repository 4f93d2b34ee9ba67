"""Room and reach on this host for the in-process mode: shared memory, folders, sockets and ports."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
from collections.abc import Iterator

from lmcache.cli.doctor.findings import Finding, error, note, warning
from lmcache.cli.doctor.subject import Subject
from lmcache.config.engine import LMCacheEngineConfig
from lmcache.config.engine.tiers import DISK, tiers
from lmcache.config.engine.views import InternalAPISettings, internal_api_settings, pool_settings
from lmcache.core.sizes import GIB, format_bytes
from lmcache.embedded.lookup.address import DEFAULT_FOLDER, LookupAddress
from lmcache.embedded.pool import PRIVATE_PREFIX
from lmcache.errors import ConfigError
from lmcache.memory.pool_files import Geometry
from lmcache.server.pools import is_held, num_live_clients, occupied_bytes, own_folders, pool_name

# As long as the one that vLLM makes.
_ENGINE_ID = "0" * 36
_SOCKET_PATH_BYTES_MAX = 107
_PORT_MAX = 65535
_FILE_KEYS = (
    "internal_api_server_auth_token_file", "internal_api_server_ssl_certfile", "internal_api_server_ssl_keyfile",
)  # fmt: skip


def check_shared_memory(config: LMCacheEngineConfig, subject: Subject) -> Iterator[Finding]:
    """Every rank of every engine on this host makes a pool of its own."""
    settings, root = pool_settings(config), subject.host.shared_memory
    if settings.size_bytes <= 0:
        return
    try:
        free_bytes = subject.host.measure(root).free_bytes - settings.reserve_bytes
    except OSError as failure:
        yield error(
            f"{root} cannot hold pools: {failure.strerror}", "L1 lies in shared memory", f"mount a tmpfs at {root}"
        )
        return
    if not os.access(root, os.W_OK | os.X_OK):
        yield error(f"{root} is not writable for this user", "L1 lies in shared memory", f"chmod 1777 {root}")
    num_pools = subject.command.num_ranks * subject.command.num_local_engines
    asked_bytes = num_pools * Geometry.for_pool(settings.size_bytes).total_bytes
    if asked_bytes > free_bytes:
        yield _no_room(subject, num_pools, asked_bytes, free_bytes)


def _no_room(subject: Subject, num_pools: int, asked_bytes: int, free_bytes: int) -> Finding:
    root = subject.host.shared_memory
    stale = [folder for folder in own_folders(root) if not is_held(folder) and not num_live_clients(folder)]
    swept_bytes = sum(occupied_bytes(folder) for folder in stale if folder.name.startswith(PRIVATE_PREFIX))
    kept = [folder for folder in stale if not folder.name.startswith(PRIVATE_PREFIX)]
    what = (
        f"no room in {root}: {num_pools} pool{'s' if num_pools > 1 else ''} of max_local_cpu_size take "
        f"{format_bytes(asked_bytes)}, {format_bytes(max(0, free_bytes))} are free"
    )
    if asked_bytes <= free_bytes + swept_bytes:
        why = f"engines that died left {format_bytes(swept_bytes)} there"
        return note(what, why, "nothing: the next start removes it")
    fitting_gb = max(0.0, (free_bytes + swept_bytes) / num_pools / GIB * 0.9)
    remedy = (
        f"set max_local_cpu_size to {fitting_gb:.1f} or less, or enlarge it (mount -o remount,size=... {root}; "
        "docker run --shm-size=..., --memory=...)"
    )
    kept_bytes = sum(map(occupied_bytes, kept))
    if asked_bytes <= free_bytes + swept_bytes + kept_bytes:
        remedy += f"; `lmcache pool rm {' '.join(map(pool_name, kept))}` frees {format_bytes(kept_bytes)}"
    return error(what, "a worker without room runs without cache", remedy)


def check_folders(config: LMCacheEngineConfig) -> Iterator[Finding]:
    """Of the tiers that keep files. Nothing is made or written."""
    for tier in tiers(config):
        if tier.adapter["type"] != "fs":
            continue
        folder = pathlib.Path(str(tier.adapter["base_path"]))
        existing = _existing(folder)
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            what = f"{tier.name}: the folder {folder} cannot be written to"
            yield error(what, f"{existing} does not let this user", "name another folder, or give access to it")
        elif tier.name == DISK:
            yield from _check_disk_room(folder, existing, config.max_local_disk_size)


def _existing(folder: pathlib.Path) -> pathlib.Path:
    """It, or the nearest folder above that is there."""
    return next((each for each in (folder, *folder.absolute().parents) if each.exists()), folder)


def _check_disk_room(folder: pathlib.Path, existing: pathlib.Path, size_gb: float) -> Iterator[Finding]:
    asked_bytes = size_gb * GIB
    free_bytes = shutil.disk_usage(existing).free
    if asked_bytes > free_bytes and existing == folder:
        free_bytes += _held_bytes(folder)
    if asked_bytes > free_bytes:
        yield warning(
            f"max_local_disk_size {size_gb:g} GiB is more than {folder} has room for ({format_bytes(free_bytes)})",
            "stores to it fail when the file system is full",
            f"set it to {free_bytes * 0.9 / GIB:.1f} or less",
        )


def _held_bytes(folder: pathlib.Path) -> int:
    """What the tier keeps there already counts as its own room."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:  # evicted between two looks
                continue
    return total


def check_lookup_sockets(subject: Subject) -> Iterator[Finding]:
    transfer = subject.transfer or {}
    folder = subject.environ.get("VLLM_RPC_BASE_PATH") or DEFAULT_FOLDER
    address = LookupAddress(folder, str(transfer.get("engine_id") or _ENGINE_ID), 0)
    try:
        address.path(subject.command.num_ranks - 1)
    except ConfigError as refusal:
        yield error(str(refusal), "scheduler and workers meet at that socket")
    existing = _existing(pathlib.Path(folder))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield error(
            f"no socket can be made in {folder}", "scheduler and workers meet there for lookups",
            "set VLLM_RPC_BASE_PATH to a folder that this user may write to",
        )  # fmt: skip


def check_internal_api(config: LMCacheEngineConfig, subject: Subject) -> Iterator[Finding]:
    settings = internal_api_settings(config)
    if not settings.is_enabled:
        return
    for key in _FILE_KEYS:
        path = getattr(config, key)
        if path and not os.access(path, os.R_OK):
            yield error(
                f"{key} {path} cannot be read", "the internal API does not start without it", "name another file"
            )
    for index in range(subject.command.num_ranks + 1):
        if settings.serves(index):
            yield from _check_listener(settings, index)


def _check_listener(settings: InternalAPISettings, index: int) -> Iterator[Finding]:
    who = "the scheduler" if index == 0 else f"worker {index - 1}"
    path, port = settings.socket_path(index), settings.port(index)
    if path is not None:
        existing = pathlib.Path(path).parent
        if len(os.fsencode(path)) > _SOCKET_PATH_BYTES_MAX or not os.access(existing, os.W_OK | os.X_OK):
            yield error(
                f"{who}'s internal API cannot listen at {path}",
                f"its folder must be writable, and a socket's path has {_SOCKET_PATH_BYTES_MAX} characters at most",
                "set internal_api_server_socket_path_prefix to another path",
            )
    elif port > _PORT_MAX:
        yield error(f"{who}'s internal API would have port {port}", "", "lower internal_api_server_port_start")
    elif (problem := _why_not_bound(settings.host, port)) is not None:
        yield warning(
            f"{who}'s internal API cannot listen at {settings.host}:{port} ({problem})",
            "port 6999 and those above are the scheduler's and the workers' unless others are chosen",
            "choose another internal_api_server_port_start, or stop who listens there",
        )


def _why_not_bound(host: str, port: int) -> str | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as failure:
        return failure.strerror or str(failure)
    return None
