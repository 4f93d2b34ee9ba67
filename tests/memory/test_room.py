"""Room for a pool: tmpfs and cgroup as the kernel shows them, and what an operator is told."""

from __future__ import annotations

import pathlib

import pytest

from lmcache.core.sizes import GIB, MIB
from lmcache.errors import NoRoomError
from lmcache.memory.room import Room, measure_room, require_room

MARGIN = 256 * MIB
V1_UNLIMITED = 9223372036854771712


def write_v2(root: pathlib.Path, limit: str, usage: int, inactive_file: int = 0) -> None:
    (root / "memory.max").write_text(f"{limit}\n")
    (root / "memory.current").write_text(f"{usage}\n")
    (root / "memory.stat").write_text(f"anon 5\ninactive_file {inactive_file}\nactive_file 7\n")


def write_v1(root: pathlib.Path, limit: int, usage: int) -> None:
    (root / "memory").mkdir()
    (root / "memory" / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (root / "memory" / "memory.usage_in_bytes").write_text(f"{usage}\n")


def test_version_2_leaves_limit_less_usage_with_reclaimable_pages_back(tmp_path: pathlib.Path) -> None:
    write_v2(tmp_path, str(8 * GIB), 3 * GIB, GIB)
    assert measure_room(tmp_path, tmp_path).cgroup_bytes == 6 * GIB - MARGIN


def test_version_1_is_read_where_version_2_is_absent(tmp_path: pathlib.Path) -> None:
    write_v1(tmp_path, 4 * GIB, GIB)
    assert measure_room(tmp_path, tmp_path).cgroup_bytes == 3 * GIB - MARGIN


def test_a_full_container_leaves_nothing_and_never_less(tmp_path: pathlib.Path) -> None:
    write_v2(tmp_path, str(GIB), GIB)
    assert measure_room(tmp_path, tmp_path).cgroup_bytes == 0


def test_without_a_limit_only_the_file_system_counts(tmp_path: pathlib.Path) -> None:
    assert measure_room(tmp_path, tmp_path).cgroup_bytes is None
    write_v1(tmp_path, V1_UNLIMITED, GIB)
    assert measure_room(tmp_path, tmp_path).cgroup_bytes is None
    write_v2(tmp_path, "max", GIB)
    room = measure_room(tmp_path, tmp_path)
    assert room.cgroup_bytes is None
    assert room.free_bytes == room.tmpfs_bytes > 0


def test_free_bytes_are_the_smaller_of_both() -> None:
    assert Room(10, None).free_bytes == Room(10, 20).free_bytes == 10
    assert Room(10, 5).free_bytes == 5


def test_what_fits_exactly_is_taken() -> None:
    require_room(GIB, Room(GIB, GIB), pathlib.Path("/dev/shm"))
    require_room(GIB, Room(GIB, None), pathlib.Path("/dev/shm"))


def test_a_small_file_system_is_named_with_asked_free_and_remedy() -> None:
    with pytest.raises(NoRoomError) as refused:
        require_room(4 * GIB, Room(2 * GIB, None), pathlib.Path("/dev/shm"))
    text = str(refused.value)
    for part in ("asks for 4 GiB in /dev/shm", "2 GiB are free", "--l1-size-gb 1.8", "--shm-size", "remount"):
        assert part in text


def test_a_small_container_is_named_with_asked_free_and_remedy() -> None:
    with pytest.raises(NoRoomError) as refused:
        require_room(4 * GIB, Room(8 * GIB, GIB), pathlib.Path("/dev/shm"))
    text = str(refused.value)
    for part in ("asks for 4 GiB", "memory limit leaves 1 GiB", "--l1-size-gb 0.9", "docker run --memory"):
        assert part in text
