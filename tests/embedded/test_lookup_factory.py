"""Which client and server a configuration asks for, and what the bypass answers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup.address import LookupAddress
from lmcache.embedded.lookup.bypass_client import LMCacheBypassLookupClient
from lmcache.embedded.lookup.factory import LookupClientFactory
from lmcache.errors import BackendError, ConfigError
from lmcache.testing.paged_memory import make_layout
from tests.conftest import FakeClock
from tests.embedded.lookup_site import Rank
from tests.embedded.site import prompt_of


class Tiers:
    """A scheduler's own engine that finds what it is told to, or raises it, after a while."""

    def __init__(self, clock: FakeClock) -> None:
        self.found: int | Exception = 2
        self.takes_s = 0.0
        self.asked_for_s: list[float] = []
        self.is_closed = False
        self._clock = clock

    def count_leading(self, prompt: Prompt, wait_s: float) -> int:
        self.asked_for_s.append(wait_s)
        self._clock.advance(min(self.takes_s, wait_s))
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def close(self) -> None:
        self.is_closed = True


class Inner:
    """A `LookupClient` that answers what it is told to."""

    def __init__(self) -> None:
        self.found: int | None = 10
        self.known: list[KVLayout] | None = None
        self.num_asked = 0
        self.forgotten: list[str] = []
        self.is_closed = False

    def layouts(self) -> list[KVLayout] | None:
        self.num_asked += 1
        return self.known

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int | None:
        return self.found

    def forget(self, lookup_id: str) -> None:
        self.forgotten.append(lookup_id)

    def end_lookups(self) -> None: ...

    def name(self) -> str:
        return "Inner"

    def close(self) -> None:
        self.is_closed = True


class Factories:
    def __init__(self, folder: str, clock: FakeClock) -> None:
        self._folder = folder
        self._clock = clock
        self.opened: list[Tiers] = []

    def make(self, **settings: Any) -> LookupClientFactory:
        config = LMCacheEngineConfig(settings)
        return LookupClientFactory(config, LookupAddress(self._folder, "e"), 2, self._open, self._clock)

    def _open(self) -> Any:
        self.opened.append(Tiers(self._clock))
        return self.opened[-1]

    def client_name(self, **settings: Any) -> str:
        client = self.make(**settings).create_lookup_client().client
        client.close()
        return client.name()

    def server_names(self, **settings: Any) -> list[str]:
        factory = self.make(**settings)
        return [factory.create_lookup_server(rank, Rank(1, 1)).name() for rank in (0, 1)]


@pytest.fixture
def factories(clock: FakeClock) -> Iterator[Factories]:
    with tempfile.TemporaryDirectory(prefix="lmc-") as folder:
        yield Factories(folder, clock)


def test_clients_are_those_of_the_documented_table(factories: Factories) -> None:
    name = factories.client_name
    assert name() == "LMCacheLookupClient"
    assert name(enable_async_loading=True) == "LMCacheAsyncLookupClient"
    assert name(enable_async_loading=True, enable_scheduler_bypass_lookup=True) == "LMCacheBypassLookupClient"
    assert name(hit_miss_ratio=0.0) == "HitLimitLookupClient(LMCacheLookupClient)"
    statistics = name(hit_miss_ratio=0.5, enable_async_loading=True, enable_chunk_statistics=True)
    assert statistics == "ChunkStatisticsLookupClient(HitLimitLookupClient(LMCacheAsyncLookupClient))"
    assert [tiers.is_closed for tiers in factories.opened] == [True]


def test_engine_of_the_scheduler_is_told_and_a_dry_run_opens_none(factories: Factories) -> None:
    factory = factories.make(enable_scheduler_bypass_lookup=True, hit_miss_ratio=0.5)
    dry = factory.create_lookup_client(is_dry_run=True)
    dry.client.close()
    assert (dry.client.name(), dry.engine, factories.opened) == (
        "HitLimitLookupClient(LMCacheBypassLookupClient)", None, [],
    )  # fmt: skip
    made = factory.create_lookup_client()
    assert factories.opened == [made.engine]
    made.client.close()
    assert factories.opened[0].is_closed


def test_servers_are_those_of_the_ranks_that_serve(factories: Factories) -> None:
    sync, later = "LMCacheLookupServer", "LMCacheAsyncLookupServer"
    assert factories.server_names() == [sync, sync]
    assert factories.server_names(enable_async_loading=True) == [later, later]
    assert factories.server_names(lookup_server_worker_ids=(1,)) == ["None", sync]
    assert factories.server_names(lookup_server_worker_ids=()) == [sync, sync]


def test_rank_that_does_not_exist_is_named(factories: Factories) -> None:
    factory = factories.make(lookup_server_worker_ids=(0, 2, 7))
    text = r"lookup_server_worker_ids: there is no rank 2, 7 \(ranks are 0 to 1\)"
    with pytest.raises(ConfigError, match=text):
        factory.create_lookup_client()
    with pytest.raises(ConfigError, match=text):
        factory.create_lookup_server(0, Rank(1, 1))


def test_client_that_cannot_be_wrapped_is_closed(factories: Factories, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: LMCacheEngineConfig) -> None:
        raise ConfigError("no such folder")

    monkeypatch.setattr("lmcache.embedded.statistics.making.make_recorder", refuse)
    factory = factories.make(enable_scheduler_bypass_lookup=True, enable_chunk_statistics=True)
    with pytest.raises(ConfigError, match="no such folder"):
        factory.create_lookup_client()
    assert factories.opened[0].is_closed


class Bypass:
    def __init__(self, clock: FakeClock) -> None:
        self.tiers, self.asking, self.timeout_ms = Tiers(clock), Inner(), 1000
        self.client = LMCacheBypassLookupClient(self.tiers, self.asking, lambda: self.timeout_ms, clock)  # type: ignore[arg-type]

    def look_up(self) -> int:
        return self.client.lookup("request", prompt_of("abc"))


@pytest.fixture
def bypass(clock: FakeClock) -> Bypass:
    return Bypass(clock)


def test_bypass_asks_the_tiers_within_the_deadline_of_now(bypass: Bypass) -> None:
    assert bypass.look_up() == 2
    bypass.timeout_ms = 500
    assert bypass.look_up() == 2
    assert bypass.tiers.asked_for_s == [0.8, 0.4]
    assert bypass.client.lookup("request", prompt_of("abc"), may_wait=False) == 0
    bypass.tiers.found = BackendError("the disk is gone")
    assert bypass.look_up() == 0
    bypass.client.close()
    assert bypass.tiers.is_closed
    assert bypass.asking.is_closed


def test_bypass_asks_workers_for_their_layouts_once(bypass: Bypass) -> None:
    assert bypass.client.layouts() is None
    bypass.asking.known = [make_layout(3)]
    assert bypass.client.layouts() == bypass.client.layouts() == [make_layout(3)]
    assert (bypass.asking.num_asked, bypass.asking.is_closed) == (2, True)
    bypass.client.close()


def test_slow_tiers_are_left_alone_for_longer_each_time_and_noticed_when_they_recover(
    bypass: Bypass, clock: FakeClock
) -> None:
    bypass.tiers.takes_s = 60
    for pause_s in (1, 2, 4, 8, 16, 30, 30):
        before = len(bypass.tiers.asked_for_s)
        assert bypass.look_up() == 2  # what they found in time
        for _ in range(100):
            assert bypass.look_up() == 0
        clock.advance(pause_s - 0.1)
        assert bypass.look_up() == 0
        assert len(bypass.tiers.asked_for_s) == before + 1
        clock.advance(0.2)
    bypass.tiers.takes_s = 0
    assert [bypass.look_up() for _ in range(3)] == [2] * 3
