"""The pools of this user on this host: where they lie, what is in them, who holds them."""

from __future__ import annotations

import mmap
import os
import pathlib
import pwd
import shutil
from dataclasses import dataclass

from lmcache.errors import ConfigError, PoolInUseError
from lmcache.memory.client_lock import FileLock, is_locked, known_client_uids, lock_path
from lmcache.memory.pool_files import FOLDER_PREFIX, PAGE_BYTES, read_geometry
from lmcache.memory.records import RecordTable, SlotState

POOL_ROOT = pathlib.Path("/dev/shm")
_OWNER_LOCK = "owner.lock"


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """`num_objects` as the index says, before any doubt that a server would have about it.

    `is_held`: a server runs on it. `num_clients`: live engine processes registered with it.
    """

    name: str
    folder: str
    size_bytes: int
    num_objects: int
    is_held: bool
    num_clients: int


def user_name() -> str:
    """The account, not what the environment calls it."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def pool_folder(name: str, root: pathlib.Path = POOL_ROOT) -> pathlib.Path:
    return root / f"{FOLDER_PREFIX}{name}"


def pool_name(folder: pathlib.Path) -> str:
    return folder.name.removeprefix(FOLDER_PREFIX)


def occupied_bytes(folder: pathlib.Path) -> int:
    """Memory that the files of a pool hold now; they are sparse until their pages are taken."""
    total = 0
    for name in ("pool", "index"):
        try:
            total += (folder / name).stat().st_blocks * 512
        except OSError:
            continue
    return total


def is_held(folder: pathlib.Path) -> bool:
    """Whether a server of another process runs on it. Never ask about a pool this process holds:
    to look at its lock file would drop the lock."""
    return bool(is_locked(folder / _OWNER_LOCK))


def num_live_clients(folder: pathlib.Path) -> int:
    return sum(bool(is_locked(lock_path(folder, uid))) for uid in known_client_uids(folder))


def own_folders(root: pathlib.Path = POOL_ROOT) -> list[pathlib.Path]:
    """The folder of every pool of this user, by name."""
    found = []
    for folder in sorted(root.glob(f"{FOLDER_PREFIX}*")):
        try:
            is_ours = folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.geteuid()
            if is_ours and (folder / _OWNER_LOCK).exists():
                found.append(folder)
        except OSError:  # gone between two looks
            continue
    return found


def own_pools(root: pathlib.Path = POOL_ROOT) -> list[PoolInfo]:
    """Every pool of this user, by name. Not in a process that holds one: see `is_held`."""
    return [
        PoolInfo(
            name=pool_name(folder),
            folder=str(folder),
            size_bytes=occupied_bytes(folder),
            num_objects=count_objects(folder),
            is_held=is_held(folder),
            num_clients=num_live_clients(folder),
        )
        for folder in own_folders(root)
    ]


def count_objects(folder: pathlib.Path) -> int:
    """Objects in a pool as its index says; 0 if there is none."""
    found = read_geometry(folder)
    if found is None:
        return 0
    geometry = found[0]
    try:
        descriptor = os.open(folder / "index", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        mapping = mmap.mmap(descriptor, geometry.index_bytes, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    records = RecordTable(mapping, PAGE_BYTES, geometry.num_records)
    num_objects = len(records.slots_in((SlotState.READY,)))
    records.close()
    mapping.close()
    return num_objects


def remove_pool(name: str, root: pathlib.Path = POOL_ROOT) -> int:
    """Delete a pool that no server holds; the bytes it held. `name` with or without the prefix.

    Raises ConfigError if there is none, PoolInUseError if a server runs on it. Engine
    processes that still have it mapped keep their view of it.
    """
    folders = {folder.name: folder for folder in own_folders(root)}
    folder = folders.get(f"{FOLDER_PREFIX}{name}") or folders.get(name)
    if folder is None:
        known = ", ".join(map(pool_name, folders.values())) or "none"
        raise ConfigError(f"no pool named {name!r}; pools of {user_name()} in {root}: {known}")
    if is_held(folder):
        raise PoolInUseError(_in_use(name))
    try:
        lock = FileLock(folder / _OWNER_LOCK)
    except BlockingIOError:
        raise PoolInUseError(_in_use(name)) from None
    try:
        size_bytes = occupied_bytes(folder)
        shutil.rmtree(folder)
    finally:
        lock.release()
    return size_bytes


def _in_use(name: str) -> str:
    return f"pool {name} is held by a running lmcache server: stop it first"
