"""The asynchronous client and server: nobody waits, answers find their lookup, what came too late is let go of."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from lmcache.embedded.lookup.client import LMCacheLookupClient
from lmcache.embedded.lookup.factory import LookupClientFactory
from lmcache.testing.waiting import wait_until
from tests.conftest import FakeClock
from tests.embedded.lookup_site import LONG_MS, Ranks, look_up
from tests.embedded.site import config_of, opened, prompt_of
from tests.embedded.tiers import REMOTE, Gate, memory


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with tempfile.TemporaryDirectory(prefix="lmc-") as folder:
        found = Ranks(pathlib.Path(folder) / "rpc", enable_async_loading=True)
        found.start(0, 1)
        yield found
        found.close()


@pytest.fixture
def timed(ranks: Ranks, clock: FakeClock) -> Ranks:
    """The client lives by the test's clock."""
    ranks.client.close()
    ranks.factory = LookupClientFactory(ranks.config, ranks.address, 2, clock=clock)
    ranks.client = ranks.factory.create_lookup_client().client
    return ranks


def test_first_call_asks_and_later_ones_answer_when_all_ranks_have(ranks: Ranks) -> None:
    ranks.targets[1].hold()
    assert ranks.client.lookup("request", prompt_of("abc")) is None
    wait_until(lambda: bool(ranks.targets[1].num_waiting and ranks.targets[0].asked))
    for _ in range(50):
        assert ranks.client.lookup("request", prompt_of("abc")) is None
    assert len(ranks.targets[0].asked) == len(ranks.targets[1].asked) == 1
    ranks.targets[1].let_go()
    assert look_up(ranks.client, "request", prompt_of("abc")) == 3
    assert ranks.client.num_pending == 0


def test_slow_lookup_holds_up_no_other(ranks: Ranks) -> None:
    ranks.targets[1].hold()
    for name in ("slow", "fast"):
        assert ranks.client.lookup(name, prompt_of("abc")) is None
    wait_until(lambda: ranks.targets[1].num_waiting == 2)
    ranks.targets[1].let_go("fast")
    assert look_up(ranks.client, "fast", prompt_of("abc")) == 3
    assert ranks.client.lookup("slow", prompt_of("abc")) is None
    ranks.targets[1].let_go()
    assert look_up(ranks.client, "slow", prompt_of("abc")) == 3


def test_answers_that_come_in_another_order_find_their_lookup(ranks: Ranks) -> None:
    target = ranks.targets[1]
    target.hold()
    for number in range(20):
        ranks.client.lookup(f"{number}", prompt_of("abc"))
    wait_until(lambda: target.num_waiting == 20)
    for number in reversed(range(20)):
        target.found = number % 3
        target.let_go(f"{number}")
    assert [look_up(ranks.client, f"{number}", prompt_of("abc")) for number in range(20)] == [
        number % 3 for number in range(20)
    ]


def test_too_late_is_a_miss_that_the_ranks_let_go_of(timed: Ranks, clock: FakeClock) -> None:
    assert look_up(timed.client, "warm", prompt_of("abc")) == 3
    timed.targets[1].hold()
    assert timed.client.lookup("late", prompt_of("abc")) is None
    assert timed.client.lookup("later", prompt_of("abc")) is None
    wait_until(lambda: timed.targets[1].num_waiting == 2)
    clock.advance(LONG_MS / 1000)
    assert timed.client.lookup("late", prompt_of("abc")) == 0
    # The other one waits for the same rank, and new ones would: they miss at once.
    assert timed.client.lookup("later", prompt_of("abc")) == 0
    wait_until(lambda: all({"late", "later"} <= set(target.released) for target in timed.targets))
    timed.targets[1].let_go()
    wait_until(lambda: bool(timed.client.is_up))
    assert look_up(timed.client, "late", prompt_of("abc")) == 3
    assert timed.client.num_pending == 0


def test_answer_that_came_in_time_is_used_however_late_it_is_asked_for(timed: Ranks, clock: FakeClock) -> None:
    assert timed.client.lookup("request", prompt_of("abc")) is None
    wait_until(lambda: all(target.asked for target in timed.targets))
    assert look_up(timed.client, "other", prompt_of("abc")) == 3  # so the first one's answers are there
    clock.advance(10 * LONG_MS / 1000)
    assert timed.client.lookup("request", prompt_of("abc")) == 3


def test_rank_that_says_hello_and_never_answers_is_left_alone_for_longer_each_time(
    timed: Ranks, clock: FakeClock
) -> None:
    assert look_up(timed.client, "warm", prompt_of("abc")) == 3
    timed.targets[1].hold()
    for rest_s in (0, 1, 2, 4):
        assert timed.client.lookup("request", prompt_of("abc")) is None
        clock.advance(LONG_MS / 1000)
        assert timed.client.lookup("request", prompt_of("abc")) == 0
        if rest_s:
            clock.advance(rest_s - 0.5)
            for _ in range(20):
                assert timed.client.lookup("at once", prompt_of("abc")) == 0
        clock.advance(1)
        wait_until(lambda: bool(timed.client.is_up))


def test_other_prompt_under_the_same_id_is_asked_for_anew(ranks: Ranks) -> None:
    ranks.targets[1].hold()
    assert ranks.client.lookup("request", prompt_of("abc")) is None
    wait_until(lambda: ranks.targets[1].num_waiting == 1)
    assert ranks.client.lookup("request", prompt_of("abcd")) is None
    wait_until(lambda: ranks.targets[1].num_waiting == 2)
    ranks.targets[1].found = 1
    first, second = ranks.targets[1]._waiting
    ranks.targets[1]._waiting = [second]
    first[1](2)
    ranks.targets[1].let_go()
    assert look_up(ranks.client, "request", prompt_of("abcd")) == 1
    assert ranks.client.num_pending == 0
    # An answered one is asked for anew.
    assert ranks.client.lookup("request", prompt_of("abcd")) is None


def test_forgotten_lookup_is_released(ranks: Ranks) -> None:
    ranks.targets[1].hold()
    assert ranks.client.lookup("request", prompt_of("abc")) is None
    wait_until(lambda: ranks.targets[1].num_waiting == 1)
    ranks.client.forget("request")
    ranks.client.forget("request")
    ranks.client.forget("unknown")
    wait_until(lambda: all(target.released == ["request"] for target in ranks.targets))
    assert ranks.client.num_pending == 0


def test_end_releases_what_is_pending_before_it_returns(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmcache.embedded.lookup.async_client._LAST_WORD_S", 20.0)
    ranks.targets[1].hold()
    for name in ("one", "two"):
        assert ranks.client.lookup(name, prompt_of("abc")) is None
    wait_until(lambda: ranks.targets[1].num_waiting == 2)
    ranks.client.close()
    assert [target.released for target in ranks.targets] == [["one", "two"]] * 2


def test_only_ranks_that_serve_lookups_are_asked_for_them(ranks: Ranks) -> None:
    """The others tell their layout all the same, and may be gone without a miss."""
    ranks.config.set("lookup_server_worker_ids", [0])
    ranks.servers[1].close()
    ranks.start(1)
    assert ranks.servers[1].name() == "None"
    for is_async in (True, False):
        ranks.config.set("enable_async_loading", is_async)
        ranks.renew_client()
        assert look_up(ranks.client, "request", prompt_of("abcde")) == 5
        assert [layout.num_blocks for layout in ranks.client.layouts()] == [10, 20]
    assert not ranks.targets[1].asked
    # Whoever asks that rank nevertheless is told, at once.
    with_all = LMCacheLookupClient([ranks.address.url(rank) for rank in (0, 1)], lambda: LONG_MS)
    assert with_all.lookup("request", prompt_of("abcde")) == 0
    with_all.close()
    ranks.servers[1].close()
    assert look_up(ranks.client, "request", prompt_of("abcde")) == 5


class EngineTarget:
    """A rank's engine, as its worker hands it to the server."""

    def __init__(self, engine: Any) -> None:
        self.introduce = lambda: engine.rank.layout
        self.lookup = engine.lookup
        self.lookup_later = engine.lookup_later
        self.release = engine.release


def test_engine_with_a_slow_tier_holds_nothing_for_lookups_that_are_over(
    ranks: Ranks, pool_folder: pathlib.Path
) -> None:
    """And answers what is in L1 meanwhile."""
    ranks.config.set("lookup_server_worker_ids", [0])
    with opened(pool_folder, config_of(16, backends=(memory(),))) as site:
        ranks.targets[0] = EngineTarget(site.engine)
        ranks.servers[0].close()
        ranks.start(0)
        ranks.renew_client()
        client = ranks.client
        site.store("abc")
        site.wait_until_stored()
        site.engine.clear(["LocalCPUBackend"])
        site.store("xy")
        site.wait_until_stored()
        gate = Gate(site, REMOTE, "lookup")
        for name in ("wanted", "forgotten"):
            assert client.lookup(name, prompt_of("abc")) is None
        assert look_up(client, "fast", prompt_of("xy")) == 2
        assert not gate.was_passed
        assert client.num_pending == 2
        client.forget("forgotten")
        gate.open()
        assert look_up(client, "wanted", prompt_of("abc")) == 3
        wait_until(lambda: site.num_locked == 5)
        site.engine.release(["wanted", "fast"])
        # The rank may hear of the one that was forgotten only now.
        wait_until(lambda: site.num_locked == 0)
        ranks.servers[0].close()
