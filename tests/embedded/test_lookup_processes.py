"""Lookups of workers that are real processes: killed, stopped, started anew, switched under traffic."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator

import pytest

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.embedded.lookup.address import LookupAddress
from lmcache.embedded.lookup.factory import LookupClientFactory
from lmcache.embedded.lookup.switch import ClientSwitch
from lmcache.testing.waiting import wait_until
from tests.conftest import Child, StartChild
from tests.embedded.lookup_site import LONG_MS, look_up
from tests.embedded.site import prompt_of

NUM_HITS = 1000
NUM_SERVER_CHANGES = 10
ENGINE_ID = "engine"

WORKER = """
import sys
from lmcache.config.engine import LMCacheEngineConfig
from lmcache.embedded.lookup.address import LookupAddress
from lmcache.embedded.lookup.factory import LookupClientFactory
from lmcache.embedded.lookup.switch import ServerSwitch
from tests.embedded.lookup_site import Rank

folder, rank, is_async = sys.argv[1:]
config = LMCacheEngineConfig({"enable_async_loading": is_async == "True"})
target = Rank(10, 5 - 2 * int(rank))
switch = ServerSwitch(LookupClientFactory(config, LookupAddress(folder, "engine"), 2), int(rank))
switch.serve(target)
print("serves", flush=True)
for line in sys.stdin:
    order = line.strip()
    if order == "released":
        print(*target.released, flush=True)
    elif order == "switch":
        config.set("enable_async_loading", not config.enable_async_loading)
        print(*switch.recreate(), flush=True)
    elif order == "close":
        print(switch.close(), flush=True)
    elif order == "create":
        print(switch.create(False), flush=True)
switch.shut_down()
"""


class Workers:
    """Two ranks, that find 5 and 3 chunks, and a client of them."""

    def __init__(self, folder: str, start_child: StartChild, is_async: bool) -> None:
        self._folder = folder
        self._start_child = start_child
        self._is_async = is_async
        self.config = LMCacheEngineConfig({"lookup_timeout_ms": LONG_MS, "enable_async_loading": is_async})
        self.switch = ClientSwitch(LookupClientFactory(self.config, LookupAddress(folder, ENGINE_ID), 2))
        self.client = self.switch.client
        self.children = [self.start(rank) for rank in (0, 1)]
        self.switch.create(False)

    def start(self, rank: int) -> Child:
        child = self._start_child(WORKER, self._folder, str(rank), str(self._is_async))
        assert child.read_line() == "serves"
        return child

    def order(self, rank: int, order: str) -> str:
        self.children[rank].write_line(order)
        return self.children[rank].read_line()

    def look_up(self, lookup_id: str = "request") -> int:
        """Fails where the deadline had to be waited for."""
        began_s = time.monotonic()
        found = look_up(self.client, lookup_id, prompt_of("abcde"))
        assert time.monotonic() - began_s < LONG_MS / 1000
        return found

    def wait_until_found(self) -> None:
        wait_until(lambda: self.look_up("again") == 3)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def workers(request: pytest.FixtureRequest, start_child: StartChild) -> Iterator[Workers]:
    with tempfile.TemporaryDirectory(prefix="lmc-") as folder:
        found = Workers(folder, start_child, request.param)
        yield found
        found.switch.shut_down()


def test_killed_worker_is_a_miss_at_once_until_another_takes_its_place(workers: Workers) -> None:
    assert workers.look_up() == 3
    workers.children[1].kill()
    for _ in range(100):
        assert workers.look_up() == 0
    workers.children[1] = workers.start(1)
    workers.wait_until_found()


def test_worker_that_dies_in_the_middle_of_a_lookup_is_a_miss_at_once(workers: Workers) -> None:
    assert workers.look_up() == 3
    workers.children[1].stop()
    killer = threading.Timer(0.2, workers.children[1].kill)
    killer.start()
    assert workers.look_up() == 0
    killer.join()


def test_stopped_worker_costs_one_deadline(workers: Workers) -> None:
    assert workers.look_up() == 3
    workers.children[1].stop()
    workers.config.set("lookup_timeout_ms", 200)
    assert workers.look_up("late") == 0
    workers.config.set("lookup_timeout_ms", LONG_MS)
    for number in range(100):
        assert workers.look_up(f"{number}") == 0
    workers.children[1].resume()
    workers.wait_until_found()
    assert workers.order(1, "released").split()[0] == "late"


class Traffic:
    """A scheduler that looks up without pause, until it is told to end and has found often enough."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.found: list[int] = []
        self.num_hits = 0
        self.error: BaseException | None = None
        self._may_end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while self.num_hits < NUM_HITS or not self._may_end.is_set():
                self.found.append(self._workers.look_up(f"{len(self.found)}"))
                self.num_hits += self.found[-1] == 3
                if not self.found[-1]:
                    time.sleep(0.001)
        except BaseException as error:
            self.error = error

    def wait_for_a_hit(self) -> None:
        before = self.num_hits
        wait_until(lambda: self.num_hits > before or self.error is not None)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._may_end.set()
        self._thread.join()
        assert self.error is None


def test_client_is_switched_under_traffic(workers: Workers) -> None:
    names, is_async = set(), False
    with Traffic(workers) as traffic:
        while traffic.num_hits < NUM_HITS and traffic.error is None:
            is_async = not is_async
            workers.config.set("enable_async_loading", is_async)
            workers.config.set("hit_miss_ratio", 0.0 if is_async else None)
            names.add(workers.switch.recreate()[1])
            workers.switch.create(is_dry_run=True)
    assert names == {"LMCacheLookupClient", "HitLimitLookupClient(LMCacheAsyncLookupClient)"}
    assert set(traffic.found) == {3}


def test_servers_are_switched_under_traffic(workers: Workers) -> None:
    assert workers.look_up() == 3
    names = set()
    with Traffic(workers) as traffic:
        for _ in range(NUM_SERVER_CHANGES):
            for rank in (0, 1):
                names |= set(workers.order(rank, "switch").split())
            traffic.wait_for_a_hit()
    assert names == {"LMCacheLookupServer", "LMCacheAsyncLookupServer"}
    assert set(traffic.found) <= {0, 3}
    workers.wait_until_found()


def test_closed_server_is_a_miss_at_once(workers: Workers) -> None:
    assert workers.look_up() == 3
    assert workers.order(1, "close") in ("LMCacheLookupServer", "LMCacheAsyncLookupServer")
    for _ in range(100):
        assert workers.look_up() == 0
    wait_until(lambda: workers.client.layouts() is not None)
    workers.order(1, "create")
    workers.wait_until_found()
