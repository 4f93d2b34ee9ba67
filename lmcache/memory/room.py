"""How much memory a pool may take: free bytes of the tmpfs and of the cgroup around us."""

from __future__ import annotations

import os
import pathlib
from dataclasses import dataclass

from lmcache.core.sizes import GIB, format_bytes
from lmcache.errors import NoRoomError

_UNLIMITED_BYTES = 1 << 60
# Left to the rest of the container, so that filling the pool does not call the OOM killer.
_CGROUP_MARGIN_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Room:
    """Free bytes by where they would be charged. `cgroup_bytes` is None without a limit."""

    tmpfs_bytes: int
    cgroup_bytes: int | None

    @property
    def free_bytes(self) -> int:
        return self.tmpfs_bytes if self.cgroup_bytes is None else min(self.tmpfs_bytes, self.cgroup_bytes)


def measure_room(folder: pathlib.Path, cgroup_root: pathlib.Path = pathlib.Path("/sys/fs/cgroup")) -> Room:
    status = os.statvfs(folder)
    return Room(status.f_bavail * status.f_frsize, _cgroup_room(cgroup_root))


def _cgroup_room(root: pathlib.Path) -> int | None:
    """Room of the nearest memory cgroup as a container sees it: version 2, then version 1."""
    for folder, limit_name, usage_name in (
        (root, "memory.max", "memory.current"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit = _read_number(folder / limit_name)
        usage = _read_number(folder / usage_name)
        if limit is None or usage is None:
            continue
        if limit >= _UNLIMITED_BYTES:
            return None
        reclaimable = _read_stat(folder / "memory.stat", "inactive_file")
        return max(0, limit - usage + reclaimable - _CGROUP_MARGIN_BYTES)
    return None


def _read_number(path: pathlib.Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return _UNLIMITED_BYTES if text == "max" else int(text)


def _read_stat(path: pathlib.Path, field: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [field]), 0)


def require_room(asked_bytes: int, room: Room, folder: pathlib.Path) -> None:
    """Raise NoRoomError, with a line that names asked, free and the remedy."""
    if asked_bytes > room.tmpfs_bytes:
        raise NoRoomError(
            f"the pool asks for {format_bytes(asked_bytes)} in {folder}, {format_bytes(room.tmpfs_bytes)} are free: "
            f"pass --l1-size-gb {_fitting_gib(room.tmpfs_bytes)}, or enlarge the file system "
            f"(mount -o remount,size=... {folder}; docker run --shm-size=...)"
        )
    if room.cgroup_bytes is not None and asked_bytes > room.cgroup_bytes:
        raise NoRoomError(
            f"the pool asks for {format_bytes(asked_bytes)}, this container's memory limit leaves "
            f"{format_bytes(room.cgroup_bytes)}: pass --l1-size-gb {_fitting_gib(room.cgroup_bytes)}, "
            f"or raise the limit (docker run --memory=..., resources.limits.memory)"
        )


def _fitting_gib(free_bytes: int) -> str:
    return f"{max(0.0, free_bytes * 0.9 / GIB):.1f}"
