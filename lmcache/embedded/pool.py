"""The private pool of one engine process: a folder of its own in shared memory, gone with its process.

Nobody adopts such a pool. One that outlived its process, because it was killed, is removed by the
next start of any engine of the same user.
"""

from __future__ import annotations

import logging
import os
import pathlib
import secrets
import shutil
import threading
import time
from collections.abc import Callable

from lmcache.core.sizes import format_bytes
from lmcache.embedded.config import EmbeddedConfig
from lmcache.engine.pool import Pool, PoolConfig
from lmcache.errors import NoRoomError, PoolError
from lmcache.memory.client_lock import FileLock
from lmcache.memory.pool_files import FOLDER_PREFIX, Geometry
from lmcache.memory.room import Room, measure_room

logger = logging.getLogger(__name__)

POOL_ROOT = pathlib.Path("/dev/shm")
PRIVATE_PREFIX = f"{FOLDER_PREFIX}embedded-"
_OWNER_LOCK = "owner.lock"
# A folder younger than this may belong to a process that is about to lock it.
_SETTLED_S = 10.0

# Pools of this process: to look at their lock files would drop their locks.
_own_folders: set[pathlib.Path] = set()
_own_mutex = threading.Lock()


def private_folder(root: pathlib.Path = POOL_ROOT, prefix: str = PRIVATE_PREFIX) -> pathlib.Path:
    """A name that nobody has."""
    return root / f"{prefix}{os.geteuid()}-{secrets.token_hex(6)}"


def open_private_pool(
    config: EmbeddedConfig,
    folder: pathlib.Path,
    clock: Callable[[], float] = time.monotonic,
    measure: Callable[[pathlib.Path], Room] = measure_room,
) -> Pool:
    """Raises NoRoomError, PoolError. Its pages are taken in the background."""
    if config.pool_bytes <= 0:
        raise NoRoomError("max_local_cpu_size leaves no pool: it must be above 0, also for what only passes through L1")
    geometry = Geometry.for_pool(config.pool_bytes)
    _require_room(geometry, config.reserve_bytes, folder.parent, measure)
    with _own_mutex:
        _own_folders.add(folder)
    try:
        return Pool(
            PoolConfig(folder, geometry, eviction_policy=config.eviction_policy, maps_ahead=True), clock, adopts=False
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        _forget(folder)
        raise


def close_private_pool(pool: Pool, has_writers: bool) -> None:
    pool.close(keep=False, has_writers=has_writers)
    if not has_writers:
        _forget(pool.config.folder)


def _forget(folder: pathlib.Path) -> None:
    with _own_mutex:
        _own_folders.discard(folder)


def _require_room(
    geometry: Geometry, reserve_bytes: int, root: pathlib.Path, measure: Callable[[pathlib.Path], Room]
) -> None:
    try:
        free = measure(root).free_bytes - reserve_bytes
    except OSError as error:
        raise PoolError(f"{root} cannot hold the pool: {error}") from error
    if geometry.total_bytes > free:
        kept = f" beside the {format_bytes(reserve_bytes)} of reserve_local_cpu_size" if reserve_bytes else ""
        raise NoRoomError(
            f"max_local_cpu_size asks for {format_bytes(geometry.total_bytes)} in {root}, "
            f"{format_bytes(max(0, free))} are free{kept}: make it smaller, or the file system larger "
            f"(mount -o remount,size=... {root}; docker run --shm-size=...)"
        )


def sweep_private_pools(
    root: pathlib.Path = POOL_ROOT, prefix: str = PRIVATE_PREFIX, wall_clock: Callable[[], float] = time.time
) -> int:
    """Remove what dead engines of this user left; how many pools that were."""
    num_removed = 0
    for folder in root.glob(f"{prefix}{os.geteuid()}-*"):
        try:
            num_removed += _remove_if_dead(folder, wall_clock())
        except OSError as error:  # gone between two looks, or not ours to remove
            logger.debug("cannot look after %s: %s", folder, error)
    return num_removed


def _remove_if_dead(folder: pathlib.Path, now_s: float) -> bool:
    status = folder.stat(follow_symlinks=False)
    is_ours = folder.is_dir() and not folder.is_symlink() and status.st_uid == os.geteuid()
    with _own_mutex:
        if not is_ours or folder in _own_folders or now_s - status.st_mtime < _SETTLED_S:
            return False
    try:
        lock = FileLock(folder / _OWNER_LOCK)
    except BlockingIOError:
        return False
    try:
        shutil.rmtree(folder)
    finally:
        lock.release()
    logger.info("removed the pool %s, whose process is dead", folder)
    return True
