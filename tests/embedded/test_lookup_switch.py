"""Lookup clients and servers are changed while they are in use: what operators see, and what lookups do."""

from __future__ import annotations

import pathlib
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lmcache.embedded.lookup.factory import LookupClientFactory
from lmcache.embedded.lookup.switch import ClientSwitch, ServerSwitch
from lmcache.errors import ConfigError, LookupSwitchError
from lmcache.testing.waiting import wait_until
from tests.conftest import FakeClock
from tests.embedded.lookup_site import Ranks, look_up
from tests.embedded.site import prompt_of
from tests.embedded.test_lookup_factory import Tiers


class Processes:
    """A scheduler's switch and those of two workers, by one configuration."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.ranks = Ranks(folder)
        self.config = self.ranks.config
        self.opened: list[Tiers] = []
        self.factory = LookupClientFactory(self.config, self.ranks.address, 2, open_tier_engine=self._open)
        self.scheduler = ClientSwitch(self.factory)
        self.workers = [ServerSwitch(self.factory, rank) for rank in (0, 1)]

    def _open(self) -> Any:
        self.opened.append(Tiers(FakeClock()))
        return self.opened[-1]

    def start(self) -> None:
        for worker, target in zip(self.workers, self.ranks.targets, strict=True):
            worker.serve(target)
        self.scheduler.create(False)

    def look_up(self, lookup_id: str = "request") -> int:
        return look_up(self.scheduler.client, lookup_id, prompt_of("abcde"))

    def wait_until_found(self) -> None:
        wait_until(lambda: self.look_up() == 3)

    def close(self) -> None:
        self.scheduler.shut_down()
        for target, worker in zip(self.ranks.targets, self.workers, strict=True):
            target.let_go()
            worker.shut_down()
        self.ranks.close()
        assert all(tiers.is_closed for tiers in self.opened)


@pytest.fixture
def processes() -> Iterator[Processes]:
    with tempfile.TemporaryDirectory(prefix="lmc-") as folder:
        found = Processes(pathlib.Path(folder) / "rpc")
        yield found
        found.close()
        assert not list(pathlib.Path(folder).glob("rpc/*"))


def test_info_names_client_and_server(processes: Processes) -> None:
    assert processes.scheduler.info() == ("None", "None")
    assert processes.workers[0].info() == ("None", "None")
    processes.start()
    assert processes.scheduler.info() == ("LMCacheLookupClient", "None")
    assert processes.workers[0].info() == ("None", "LMCacheLookupServer")


def test_documented_flow_both_ways(processes: Processes) -> None:
    processes.start()
    assert processes.look_up() == 3
    processes.config.set("enable_async_loading", True)
    assert [worker.recreate() for worker in processes.workers] == [
        ("LMCacheLookupServer", "LMCacheAsyncLookupServer")
    ] * 2
    processes.wait_until_found()
    processes.config.set("enable_scheduler_bypass_lookup", True)
    assert processes.scheduler.recreate() == ("LMCacheLookupClient", "LMCacheBypassLookupClient")
    assert processes.look_up() == 2
    assert processes.scheduler.engine is processes.opened[0]
    assert processes.scheduler.client.layouts() is not None
    processes.config.set("enable_scheduler_bypass_lookup", False)
    assert processes.scheduler.recreate() == ("LMCacheBypassLookupClient", "LMCacheAsyncLookupClient")
    assert processes.scheduler.engine is None
    assert processes.opened[0].is_closed
    assert processes.look_up() == 3


def test_closed_client_misses_until_another_is_made(processes: Processes) -> None:
    processes.start()
    assert processes.scheduler.close() == "LMCacheLookupClient"
    assert processes.scheduler.info() == ("None", "None")
    assert processes.scheduler.current is None
    assert processes.scheduler.client.lookup("request", prompt_of("abc")) == 0
    assert processes.scheduler.client.layouts() is None
    processes.scheduler.client.forget("request")
    for change in (processes.scheduler.close, processes.scheduler.recreate):
        with pytest.raises(LookupSwitchError, match=r"^lookup client not available$"):
            change()
    assert processes.scheduler.create(False) == "LMCacheLookupClient"
    assert processes.look_up() == 3


def test_closed_server_misses_until_another_is_made_and_still_tells_its_layout(processes: Processes) -> None:
    processes.start()
    assert processes.workers[1].close() == "LMCacheLookupServer"
    assert processes.workers[1].info() == ("None", "None")
    assert processes.look_up() == 0
    wait_until(lambda: processes.scheduler.client.layouts() is not None)
    for change in (processes.workers[1].close, processes.workers[1].recreate):
        with pytest.raises(LookupSwitchError, match=r"^lookup server not available$"):
            change()
    assert processes.workers[1].create(False) == "LMCacheLookupServer"
    processes.wait_until_found()


def test_create_replaces_what_is_there(processes: Processes) -> None:
    processes.config.set("enable_scheduler_bypass_lookup", True)
    processes.start()
    assert processes.scheduler.create(False) == "LMCacheBypassLookupClient"
    assert [tiers.is_closed for tiers in processes.opened] == [True, False]
    processes.config.set("enable_async_loading", True)
    assert processes.workers[0].create(False) == "LMCacheAsyncLookupServer"
    assert processes.workers[0].info()[1] == "LMCacheAsyncLookupServer"


def test_dry_run_tells_a_name_and_disturbs_nothing(processes: Processes) -> None:
    processes.start()
    assert processes.look_up() == 3
    for key in ("enable_async_loading", "enable_scheduler_bypass_lookup"):
        processes.config.set(key, True)
    before = processes.scheduler.current
    assert processes.scheduler.create(True) == "LMCacheBypassLookupClient"
    assert processes.workers[0].create(True) == "LMCacheAsyncLookupServer"
    assert processes.scheduler.current is before
    assert not processes.opened
    assert processes.workers[0].info() == ("None", "LMCacheLookupServer")
    # Not one answer was lost: the connection is the old one.
    assert [processes.look_up(f"{number}") for number in range(10)] == [3] * 10


def test_configuration_that_cannot_be_honoured_changes_nothing(processes: Processes) -> None:
    processes.start()
    assert processes.look_up() == 3
    processes.config.set("lookup_server_worker_ids", [5])
    for switch in (processes.scheduler, *processes.workers):
        for is_dry_run in (True, False):
            with pytest.raises(ConfigError, match="lookup_server_worker_ids"):
                switch.create(is_dry_run)
        with pytest.raises(ConfigError, match="lookup_server_worker_ids"):
            switch.recreate()
    assert processes.look_up() == 3


def test_what_is_missing_is_told_in_the_documented_words(processes: Processes) -> None:
    for switch in (ClientSwitch(None), ServerSwitch(None, 0)):
        with pytest.raises(LookupSwitchError, match=r"^metadata not available$"):
            switch.create(False)
    with pytest.raises(LookupSwitchError, match=r"^engine not available$"):
        processes.workers[0].create(False)
    processes.scheduler.shut_down()
    with pytest.raises(LookupSwitchError, match=r"^lookup client not available$"):
        processes.scheduler.create(False)


def test_pending_lookup_goes_on_with_the_new_client_and_holds_nothing_for_the_old(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmcache.embedded.lookup.async_client._LAST_WORD_S", 20.0)
    processes.config.set("enable_async_loading", True)
    processes.start()
    target = processes.ranks.targets[1]
    target.hold()
    client = processes.scheduler.client
    assert client.lookup("request", prompt_of("abcde")) is None
    wait_until(lambda: target.num_waiting == 1)
    processes.scheduler.recreate()
    # Before anything that the new one asks for.
    assert [each.released for each in processes.ranks.targets] == [["request"]] * 2
    assert client.lookup("request", prompt_of("abcde")) is None
    wait_until(lambda: target.num_waiting == 2)
    target.let_go()
    assert processes.look_up() == 3
    assert [each.released for each in processes.ranks.targets] == [["request"]] * 2


def test_lookup_under_way_delays_the_change_and_not_the_other_way_round(processes: Processes) -> None:
    processes.start()
    assert processes.look_up() == 3
    target = processes.ranks.targets[1]
    target.hold()
    found: list[int] = []
    looking = threading.Thread(target=lambda: found.append(processes.look_up("slow")))
    looking.start()
    wait_until(lambda: target.asked[-1][0] == "slow")
    changing = threading.Thread(target=processes.scheduler.recreate)
    changing.start()
    # Operators who only look are not held up.
    assert processes.scheduler.info() == ("LMCacheLookupClient", "None")
    target.let_go()
    looking.join()
    changing.join()
    assert found == [3]
    assert processes.look_up() == 3


def test_change_gets_its_turn_however_fast_lookups_follow_each_other(processes: Processes) -> None:
    processes.start()
    is_over = threading.Event()
    found = []

    def look_up_without_pause() -> None:
        while not is_over.is_set():
            found.append(processes.scheduler.client.lookup("request", prompt_of("abcde")))

    looking = threading.Thread(target=look_up_without_pause)
    looking.start()
    try:
        for _ in range(20):
            processes.scheduler.recreate()
    finally:
        is_over.set()
        looking.join()
    assert set(found) == {3}
