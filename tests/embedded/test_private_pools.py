"""Private pools: room for them, and what becomes of those whose process died."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import time
from collections.abc import Iterator

import pytest

from lmcache.embedded.pool import close_private_pool, open_private_pool, private_folder, sweep_private_pools
from lmcache.errors import NoRoomError
from lmcache.memory.room import Room
from tests.conftest import StartChild
from tests.embedded.site import config_of

ROOT = pathlib.Path("/dev/shm")
HOLD_A_POOL = """
import sys, pathlib
from lmcache.embedded.pool import open_private_pool
from tests.embedded.site import config_of
pool = open_private_pool(config_of(), pathlib.Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def prefix() -> Iterator[str]:
    found = f"lmcache-test-{os.getpid()}-embedded-"
    yield found
    for folder in ROOT.glob(f"{found}*"):
        shutil.rmtree(folder)


def an_hour_later() -> float:
    return time.time() + 3600


def test_pools_of_the_dead_are_removed_and_no_others(start_child: StartChild, prefix: str) -> None:
    dead, alive, own = (private_folder(prefix=prefix) for _ in range(3))
    children = [start_child(HOLD_A_POOL, str(folder)) for folder in (dead, alive)]
    for child in children:
        assert child.read_line() == "open"
    pool = open_private_pool(config_of(), own)
    assert sweep_private_pools(prefix=prefix, wall_clock=an_hour_later) == 0
    children[0].signal(signal.SIGKILL)
    children[0].wait()
    # Too young to tell it from one that is just being made.
    assert sweep_private_pools(prefix=prefix) == 0
    assert sweep_private_pools(prefix=prefix, wall_clock=an_hour_later) == 1
    assert (dead.exists(), alive.exists(), own.exists()) == (False, True, True)
    close_private_pool(pool, has_writers=False)
    # Our own lock was never touched: another process would have seen a pool without an owner.
    assert sweep_private_pools(prefix=prefix, wall_clock=an_hour_later) == 0
    children[1].kill()


def test_folder_of_something_else_is_left_alone(prefix: str) -> None:
    link = private_folder(prefix=prefix)
    link.symlink_to("/")
    assert sweep_private_pools(prefix=prefix, wall_clock=an_hour_later) == 0
    link.unlink()


def test_pool_that_finds_no_room_names_the_setting(pool_folder: pathlib.Path) -> None:
    def room(_: pathlib.Path) -> Room:
        return Room(tmpfs_bytes=1 << 20, cgroup_bytes=None)

    config = config_of(32)
    with pytest.raises(NoRoomError, match=r"max_local_cpu_size asks for .* in /dev/shm, 1 MiB are free: make it"):
        open_private_pool(config, pool_folder, measure=room)
    with pytest.raises(NoRoomError, match="0 B are free beside the 1 GiB of reserve_local_cpu_size"):
        open_private_pool(config_of(4, reserve_bytes=1 << 30), pool_folder, measure=room)
    with pytest.raises(NoRoomError, match="it must be above 0"):
        open_private_pool(config_of(0), pool_folder)
    assert not pool_folder.exists()


def mapped_kib(path: pathlib.Path) -> int:
    """What of this file is in the page tables of this process."""
    found, total = False, 0
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            found = line.endswith(str(path))
        elif found and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_pages_are_mapped_before_they_are_used(prefix: str) -> None:
    """The first touch of a page costs more than the copy into it."""
    folder = private_folder(prefix=prefix)
    pool = open_private_pool(config_of(), folder)
    pool.wait_until_populated(30)
    assert mapped_kib(folder / "pool") == pool.pool_bytes // 1024
    close_private_pool(pool, has_writers=False)
