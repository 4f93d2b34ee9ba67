"""Which pool a server opens, how large it is, and whether there is room: decided before anything is touched."""

from __future__ import annotations

import grp
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

from lmcache.config.mp_server import MPConfig, StorageManagerConfig
from lmcache.core.sizes import GIB, format_bytes
from lmcache.engine.pool import PoolConfig
from lmcache.errors import ConfigError, PoolError, PoolInUseError
from lmcache.memory.pool_files import Geometry, PoolAccess, read_geometry
from lmcache.memory.room import Room, measure_room, require_room
from lmcache.server.pools import (
    POOL_ROOT,
    count_objects,
    is_held,
    num_live_clients,
    occupied_bytes,
    own_folders,
    pool_folder,
    pool_name,
    user_name,
)

_DEFAULT_BYTES_MAX = 4 * GIB
_DEFAULT_SHARE_OF_ROOM = 0.5
_SMALL_BYTES = GIB

MeasureRoom = Callable[[pathlib.Path], Room]


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """`notes`: lines an operator should read before the pool is opened."""

    config: PoolConfig
    notes: tuple[str, ...]


def plan_pool(
    mp: MPConfig,
    storage: StorageManagerConfig,
    root: pathlib.Path = POOL_ROOT,
    measure: MeasureRoom = measure_room,
) -> PoolPlan:
    """Raises ConfigError, PoolInUseError, PoolError, NoRoomError."""
    folder = pool_folder(mp.shm_name or f"{user_name()}-{mp.port}", root)
    _check_free(folder)
    room, occupied = _measure(root, measure), occupied_bytes(folder)
    found = read_geometry(folder)
    notes: list[str] = []
    if storage.l1_size_gb is not None:
        geometry = Geometry.for_pool(int(storage.l1_size_gb * GIB))
    elif found is not None:
        geometry = found[0]
    else:
        geometry = Geometry.for_pool(min(_DEFAULT_BYTES_MAX, int(room.free_bytes * _DEFAULT_SHARE_OF_ROOM)))
        if geometry.pool_bytes < _SMALL_BYTES:
            notes.append(_small_line(root, room, geometry))
    require_room(max(0, geometry.total_bytes - occupied), room, root)
    if found is not None and found[0] != geometry:
        notes.append(_replaced_line(folder, found[0], geometry))
    config = PoolConfig(
        folder=folder,
        geometry=geometry,
        access=PoolAccess(_group_id(storage.l1_group)),
        eviction_policy=storage.eviction_policy,
        write_ttl_s=storage.l1_write_ttl_seconds,
        keep=storage.l1_keep,
        interleave_numa=storage.numa_interleave,
    )
    return PoolPlan(config, (*notes, *_leftover_lines(folder, root)))


def _check_free(folder: pathlib.Path) -> None:
    try:
        held = is_held(folder)
    except OSError as error:
        raise PoolError(
            f"{folder} belongs to somebody else or cannot be read ({error.strerror}): choose another --shm-name"
        ) from error
    if held:
        raise PoolInUseError(f"pool {folder} is held by another lmcache server: choose another --port or --shm-name")


def _measure(root: pathlib.Path, measure: MeasureRoom) -> Room:
    try:
        return measure(root)
    except OSError as error:
        raise PoolError(f"{root} cannot hold the pool: {error}") from error


def _small_line(root: pathlib.Path, room: Room, geometry: Geometry) -> str:
    return (
        f"only {format_bytes(room.free_bytes)} are free for {root}, so L1 is {format_bytes(geometry.pool_bytes)}: "
        f"give it more (docker run --shm-size=..., mount -o remount,size=... {root})"
    )


def _replaced_line(folder: pathlib.Path, old: Geometry, new: Geometry) -> str:
    return (
        f"pool {folder} of {format_bytes(old.pool_bytes)} is replaced by one of {format_bytes(new.pool_bytes)}; "
        f"its {count_objects(folder)} objects are dropped"
    )


def _leftover_lines(folder: pathlib.Path, root: pathlib.Path) -> list[str]:
    """Other pools of this user that no server and no engine holds: memory that somebody forgot."""
    lines = []
    for other in own_folders(root):
        if other != folder and not is_held(other) and not num_live_clients(other):
            name, size = pool_name(other), format_bytes(occupied_bytes(other))
            lines.append(f"pool {name} holds {size} and has no server: lmcache pool rm {name}")
    return lines


def _group_id(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name.isdecimal():
            return int(name)
        raise ConfigError(f"--l1-group: there is no group {name!r} on this host") from None
