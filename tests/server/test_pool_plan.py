"""Which pool a server would open: size, adoption, room, and the lines an operator reads first."""

from __future__ import annotations

import os
import pathlib

import pytest

from lmcache.config.mp_server import MPConfig, StorageManagerConfig
from lmcache.core.sizes import GIB, MIB
from lmcache.errors import ConfigError, NoRoomError, PoolError, PoolInUseError
from lmcache.memory.pool_files import Geometry, PoolFiles
from lmcache.memory.room import Room
from lmcache.server.pool_plan import PoolPlan, plan_pool
from lmcache.server.pools import occupied_bytes, user_name
from tests.conftest import StartChild

_HOLD = """
import pathlib, sys
from lmcache.memory.client_lock import FileLock
lock = FileLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""


def plan(root: pathlib.Path, room: Room = Room(100 * GIB, None), **storage: object) -> PoolPlan:
    mp = MPConfig("id", shm_name="mine")
    return plan_pool(mp, StorageManagerConfig(**storage), root, lambda _: room)  # type: ignore[arg-type]


def make_pool(root: pathlib.Path, size_bytes: int, name: str = "mine") -> Geometry:
    geometry = Geometry.for_pool(size_bytes)
    PoolFiles(root / f"lmcache-{name}", geometry).close(keep=True)
    return geometry


def test_pool_is_named_after_user_and_port(tmp_path: pathlib.Path) -> None:
    found = plan_pool(MPConfig("id", port=6000), StorageManagerConfig(), tmp_path, lambda _: Room(GIB, None))
    assert found.config.folder == tmp_path / f"lmcache-{user_name()}-6000"


def test_default_size_is_4_gib_where_they_fit(tmp_path: pathlib.Path) -> None:
    assert plan(tmp_path).config.geometry.pool_bytes == 4 * GIB


def test_default_size_is_half_of_what_is_free(tmp_path: pathlib.Path) -> None:
    assert plan(tmp_path, Room(6 * GIB, None)).config.geometry.pool_bytes == 3 * GIB
    assert plan(tmp_path, Room(100 * GIB, 5 * GIB)).config.geometry.pool_bytes == 5 * GIB // 2


def test_small_default_is_said(tmp_path: pathlib.Path) -> None:
    (line,) = plan(tmp_path, Room(64 * MIB, None)).notes
    assert "only 64 MiB are free" in line
    assert "L1 is 32 MiB" in line
    assert plan(tmp_path, Room(64 * MIB, None), l1_size_gb=0.03).notes == ()


def test_pool_left_behind_decides_the_size(tmp_path: pathlib.Path) -> None:
    left = make_pool(tmp_path, 48 * MIB)
    found = plan(tmp_path)
    assert found.config.geometry == left
    assert found.notes == ()


def test_another_size_replaces_the_pool_and_says_so(tmp_path: pathlib.Path) -> None:
    make_pool(tmp_path, 48 * MIB)
    found = plan(tmp_path, l1_size_gb=0.0625)
    assert found.config.geometry.pool_bytes == 64 * MIB
    (line,) = found.notes
    assert "of 48 MiB is replaced by one of 64 MiB" in line
    assert "its 0 objects are dropped" in line


def test_no_room_names_asked_free_and_remedy(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NoRoomError, match=r"asks for 8\.\d GiB .* 1 GiB are free: pass --l1-size-gb 0\.9"):
        plan(tmp_path, Room(GIB, None), l1_size_gb=8)
    with pytest.raises(NoRoomError, match="memory limit leaves 1 GiB"):
        plan(tmp_path, Room(100 * GIB, GIB), l1_size_gb=8)


def test_room_counts_what_the_pool_occupies_already(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "lmcache-mine"
    files = PoolFiles(folder, Geometry.for_pool(48 * MIB))
    files.populate(0, 32 * MIB)
    files.close(keep=True)
    left = Geometry.for_pool(48 * MIB).total_bytes - occupied_bytes(folder)
    assert left < 17 * MIB
    assert plan(tmp_path, Room(left, None)).config.geometry.pool_bytes == 48 * MIB
    with pytest.raises(NoRoomError):
        plan(tmp_path, Room(left - 1, None))


def test_held_pool_is_refused(tmp_path: pathlib.Path, start_child: StartChild) -> None:
    make_pool(tmp_path, MIB)
    assert start_child(_HOLD, str(tmp_path / "lmcache-mine" / "owner.lock")).read_line() == "held"
    with pytest.raises(PoolInUseError, match="choose another --port or --shm-name"):
        plan(tmp_path)


def test_forgotten_pools_are_reported_and_used_ones_are_not(tmp_path: pathlib.Path, start_child: StartChild) -> None:
    for name in ("mine", "forgotten", "served", "mapped"):
        make_pool(tmp_path, MIB, name)
    (tmp_path / "lmcache-not-a-pool").mkdir()
    client = tmp_path / "lmcache-mapped" / "clients" / f"{7:016x}.lock"
    for path in (tmp_path / "lmcache-served" / "owner.lock", client):
        assert start_child(_HOLD, str(path)).read_line() == "held"
    (line,) = plan(tmp_path).notes
    assert line.startswith("pool forgotten holds ")
    assert line.endswith("lmcache pool rm forgotten")
    assert (tmp_path / "lmcache-forgotten" / "index").exists()


def test_group_by_name_or_number(tmp_path: pathlib.Path) -> None:
    assert plan(tmp_path, l1_group="root").config.access.group_id == 0
    assert plan(tmp_path, l1_group=str(os.getegid())).config.access.group_id == os.getegid()
    with pytest.raises(ConfigError, match="--l1-group: there is no group 'no-such-group'"):
        plan(tmp_path, l1_group="no-such-group")


def test_missing_shared_memory_is_one_clear_error(tmp_path: pathlib.Path) -> None:
    mp = MPConfig("id", shm_name="mine")
    with pytest.raises(PoolError, match="cannot hold the pool"):
        plan_pool(mp, StorageManagerConfig(), tmp_path / "absent")
