"""Several servers on one folder: what they see of each other, who evicts, and what a dead one leaves."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from lmcache.core.sizes import GIB
from lmcache.errors import BackendError, ObjectMissingError
from lmcache.l2.base import StoreStatus
from lmcache.l2.fs.adapter import FSL2Adapter
from lmcache.testing.l2_backend import Bench, make_data, make_key
from lmcache.testing.l2_fs import FSBackend

OBJECT_BYTES = 4096 + 4096


class Server:
    """Another process with an adapter on the folder."""

    def __init__(self, base: pathlib.Path, boot_id: int, capacity_bytes: int = 0) -> None:
        command = [
            sys.executable, str(pathlib.Path(__file__).with_name("fs_child.py")), str(base), str(boot_id),
            str(capacity_bytes / GIB),
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.answer() == "ready"

    def ask(self, order: str) -> str:
        self.tell(order)
        return self.answer()

    def tell(self, order: str) -> None:
        """Without waiting for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def status(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.ask("tick"))
        return found

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.communicate()
            assert self._process.returncode == 0


@pytest.fixture
def backend(tmp_path: pathlib.Path) -> FSBackend:
    return FSBackend(tmp_path)


@pytest.fixture
def start(backend: FSBackend) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def run(capacity_bytes: int = 0) -> Server:
        servers.append(Server(backend.base, 100 + len(servers), capacity_bytes))
        return servers[-1]

    yield run
    for server in servers:
        server.stop()


@pytest.fixture
def bench(backend: FSBackend) -> Iterator[Bench]:
    bench = Bench(backend)
    yield bench
    bench.adapter.close()


def adapter_of(bench: Bench) -> FSL2Adapter:
    assert isinstance(bench.adapter, FSL2Adapter)
    return bench.adapter


def temporaries(backend: FSBackend) -> list[str]:
    return os.listdir(backend.base / ".lmcache" / "tmp")


def test_what_another_server_stores_is_found_at_once(bench: Bench, start: Callable[..., Server]) -> None:
    other = start()
    assert other.ask("store 1") == "stored"
    assert bench.is_held(make_key(1))
    assert bench.load(make_key(1), 4096).data == make_data(1)
    assert bench.store(make_key(1), make_data(1)) is StoreStatus.EXISTS
    assert other.ask("store 2") == "stored"
    assert bench.store(make_key(2), make_data(2)) is StoreStatus.EXISTS, "without being asked for before"


def test_a_rescan_lists_what_others_stored_and_forgets_what_they_deleted(
    bench: Bench, start: Callable[..., Server]
) -> None:
    other = start()
    bench.store(make_key(0), make_data(0))
    other.ask("store 1")
    other.ask("store 2")
    assert [key for key, _ in bench.listed()] == [make_key(0)]
    bench.adapter.tick()
    assert {key for key, _ in bench.listed()} == {make_key(0), make_key(1), make_key(2)}
    assert bench.adapter.usage().total_bytes_used == 3 * OBJECT_BYTES
    assert other.ask("delete 0") == "1"
    assert other.ask("delete 2") == "1"
    bench.adapter.tick()
    assert [key for key, _ in bench.listed()] == [make_key(1)]
    assert {key for key, _ in bench.events.deleted} == {make_key(0), make_key(2)}
    bench.check()


def test_a_hashed_name_is_found_by_a_rescan(bench: Bench, backend: FSBackend) -> None:
    key = make_key(1, "m" * 300)
    other = Bench(backend)
    other.adapter.close()
    other.adapter = other.make(boot_id=2)
    other.adapter.open()
    other.store(key, make_data(1))
    bench.adapter.tick()
    assert bench.listed() == [(key, OBJECT_BYTES)]
    other.adapter.close()


def test_an_object_that_another_server_removed_is_a_miss(bench: Bench, start: Callable[..., Server]) -> None:
    other = start()
    bench.store(make_key(1), make_data(1))
    assert bench.adapter.lookup([make_key(1)]) == [True]
    assert other.ask("delete 1") == "1", "a lease is known to its own server alone"
    with pytest.raises(ObjectMissingError):
        bench.load(make_key(1), 4096)
    assert not bench.is_held(make_key(1))


def test_one_server_evicts_and_another_takes_over_when_it_is_killed(bench: Bench, start: Callable[..., Server]) -> None:
    bench.adapter.close()
    other = start()
    bench.open()
    assert other.status()["is_evictor"] is True
    assert not adapter_of(bench).folder.is_evictor
    bench.store(make_key(1), make_data(1))
    assert bench.adapter.evict(1, 1) == (0, 0)
    bench.adapter.tick()
    assert bench.adapter.report_status()["other_server_count"] == 1
    other.kill()
    bench.adapter.tick()
    assert adapter_of(bench).folder.is_evictor
    assert bench.adapter.report_status()["other_server_count"] == 0
    assert bench.adapter.evict(1, 1) == (1, OBJECT_BYTES)


def test_the_evictor_makes_room_for_the_others(bench: Bench, start: Callable[..., Server]) -> None:
    capacity_bytes = 4 * OBJECT_BYTES
    bench.reopen(capacity_bytes)
    other = start(capacity_bytes)
    for number in range(4):
        assert other.ask(f"store {number}") == "stored"
    assert other.ask("store 4") == "no_room", "only the evictor may make room"
    bench.adapter.tick()
    assert bench.adapter.usage().total_bytes_used == 3 * OBJECT_BYTES
    assert other.status()["current_size_bytes"] == 3 * OBJECT_BYTES
    assert other.ask("store 4") == "stored"


def test_a_writer_killed_in_the_middle_leaves_nothing_that_counts(
    bench: Bench, backend: FSBackend, start: Callable[..., Server]
) -> None:
    killed, alive = start(), start()
    assert killed.ask("stall 1") == "stalled"
    assert alive.ask("stall 2") == "stalled"
    assert len(temporaries(backend)) == 2
    killed.kill()
    assert not bench.is_held(make_key(1))
    bench.reopen()
    assert len(temporaries(backend)) == 1, "that of the live writer stays"
    assert bench.listed() == []
    assert bench.store(make_key(1), make_data(1)) is StoreStatus.STORED
    alive.kill()
    bench.clock.now_s += 60
    bench.adapter.tick()
    assert temporaries(backend) == [], "housekeeping sweeps as well"
    assert os.listdir(backend.base / ".lmcache" / "servers") == ["0000000000000001-0.lock"]


def test_other_files_are_left_alone(bench: Bench, backend: FSBackend) -> None:
    bench.adapter.close()
    shard = backend.base / "00"
    shard.mkdir(exist_ok=True)
    others = [
        backend.base / "notes.txt",
        shard / "notes.txt",
        shard / ("f" * 64 + ".data"),
        backend.base / ".lmcache" / "tmp" / "notes.tmp",
    ]
    for path in others:
        path.write_text("mine")
    backend.path(make_key(1)).mkdir(parents=True)
    bench.open()
    bench.adapter.tick()
    assert bench.listed() == []
    assert not bench.is_held(make_key(1))
    bench.adapter.delete([make_key(1)])
    assert all(path.read_text() == "mine" for path in others)
    assert backend.path(make_key(1)).is_dir()


def test_servers_that_work_on_the_same_objects_deliver_whole_ones(
    bench: Bench, backend: FSBackend, start: Callable[..., Server]
) -> None:
    bench.adapter.close()  # the evictor is one of the others
    servers = [start(4 * OBJECT_BYTES) for _ in range(3)]
    for server in servers:
        server.tell("storm 300")
    assert [server.answer() for server in servers] == ["[]"] * 3
    assert temporaries(backend) == []
    bench.open()
    for key, _ in bench.listed():
        assert bench.adapter.verify(key)
    assert backend.num_objects() == len(bench.listed())
    bench.check()


def test_two_adapters_of_one_server_share_a_folder(bench: Bench) -> None:
    other = bench.make(boot_id=1)
    other.open()
    bench.store(make_key(1), make_data(1))
    assert other.lookup([make_key(1)]) == [True]
    assert other.report_status()["is_evictor"] is False
    bench.adapter.close()
    other.tick()
    assert other.report_status()["is_evictor"] is True
    other.close()


def test_the_oldest_use_comes_first_after_a_restart(bench: Bench, backend: FSBackend) -> None:
    keys = [make_key(number) for number in range(4)]
    for number, key in enumerate(keys):
        bench.store(key, make_data(number))
        os.utime(backend.path(key), (1000 + number, 1000 + number))
    bench.load(keys[0], 4096)
    assert backend.path(keys[0]).stat().st_mtime > 2000, "a load counts as a use"
    bench.reopen()
    bench.adapter.evict(1 << 40, 3)
    assert bench.events.evicted == [keys[1], keys[2], keys[3]]


def test_recent_uses_are_not_noted_again(bench: Bench, backend: FSBackend) -> None:
    bench.store(make_key(1), make_data(1))
    before = backend.path(make_key(1)).stat().st_mtime_ns
    bench.load(make_key(1), 4096)
    assert backend.path(make_key(1)).stat().st_mtime_ns == before


def test_a_folder_that_vanished_and_came_back(bench: Bench, backend: FSBackend) -> None:
    bench.store(make_key(1), make_data(1))
    shutil.rmtree(backend.base)
    assert not bench.is_held(make_key(2))
    with pytest.raises(ObjectMissingError):
        bench.load(make_key(1), 4096)
    with pytest.raises(BackendError):
        bench.store(make_key(2), make_data(2))
    for _ in range(2):
        with pytest.raises(BackendError, match="cannot be used: No such file"):
            bench.adapter.tick()
    assert bench.adapter.report_status()["is_healthy"] is False
    assert not backend.base.exists(), "a mount that was lost must not be replaced by a folder of ours"
    backend.base.mkdir()
    bench.adapter.tick()
    assert bench.adapter.report_status()["is_healthy"] is True
    assert adapter_of(bench).folder.is_evictor
    assert bench.listed() == []
    assert bench.store(make_key(2), make_data(2)) is StoreStatus.STORED
    assert bench.load(make_key(2), 4096).data == make_data(2)


def test_a_clean_close_that_keeps_nothing_keeps_what_others_use(
    bench: Bench, backend: FSBackend, start: Callable[..., Server]
) -> None:
    other = start()
    bench.reopen(is_persistent=False)
    bench.store(make_key(1), make_data(1))
    bench.reopen(is_persistent=False)
    assert bench.is_held(make_key(1))
    other.stop()
    bench.adapter.close()
    assert backend.num_objects() == 0
