"""Lookup clients and servers over real sockets: the minimum over ranks, within a deadline, whatever ranks do."""

from __future__ import annotations

import itertools
import pathlib
import socket
import tempfile
import time
from collections.abc import Iterator

import pytest
import zmq

from lmcache.embedded.lookup.address import LookupAddress
from lmcache.embedded.lookup.async_server import LMCacheAsyncLookupServer
from lmcache.embedded.lookup.server import LMCacheLookupServer
from lmcache.errors import ConfigError, DeclinedError, KeyFormatError
from lmcache.testing.waiting import wait_until
from tests.embedded.lookup_site import LONG_MS, Rank, Ranks, look_up
from tests.embedded.site import prompt_of

# Whether client and server are asynchronous.
PAIRS = list(itertools.product((False, True), repeat=2))


@pytest.fixture(params=PAIRS, ids=lambda pair: "{}-{}".format(*("async" if each else "sync" for each in pair)))
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """In a folder with a short name: the kernel takes no long ones for sockets."""
    is_client_async, is_server_async = request.param
    with tempfile.TemporaryDirectory(prefix="lmc-") as folder:
        found = Ranks(pathlib.Path(folder) / "rpc", enable_async_loading=is_client_async)
        found.config.set("enable_async_loading", is_server_async)
        yield found
        found.close()
        assert not list(pathlib.Path(folder).glob("rpc/*"))


def test_what_all_ranks_have_is_found(ranks: Ranks) -> None:
    ranks.start(0, 1)
    prompt = prompt_of("abcde", salt="tenant")
    assert look_up(ranks.client, "request", prompt) == 3
    for target in ranks.targets:
        ((lookup_id, asked, wait_s),) = target.asked
        assert (lookup_id, asked) == ("request", prompt)
        assert 0 < wait_s < LONG_MS / 1000
    assert look_up(ranks.client, "request", prompt, may_wait=False) == 3
    assert ranks.targets[0].asked[1][2] == 0


def test_layouts_come_in_the_order_of_ranks(ranks: Ranks) -> None:
    ranks.start(1, 0)
    layouts = ranks.client.layouts()
    assert layouts is not None
    assert [layout.num_blocks for layout in layouts] == [10, 20]
    assert layouts == [target.layout for target in ranks.targets]


def test_rank_that_declines_says_why(ranks: Ranks) -> None:
    ranks.start(0, 1)
    ranks.targets[1].found = DeclinedError("no room")
    with pytest.raises(DeclinedError, match="rank 1: no room"):
        ranks.client.layouts()
    assert look_up(ranks.client, "request", prompt_of("a")) == 0


@pytest.mark.parametrize("error", [KeyFormatError("a bad salt"), ZeroDivisionError("a bug")])
def test_rank_that_fails_is_a_miss_and_answers_the_next_question(ranks: Ranks, error: Exception) -> None:
    ranks.start(0, 1)
    ranks.targets[0].found = error
    assert look_up(ranks.client, "request", prompt_of("a")) == 0
    ranks.targets[0].found = 4
    assert look_up(ranks.client, "request", prompt_of("a")) == 3


def test_silent_rank_costs_one_deadline_and_is_noticed_when_it_comes_back(ranks: Ranks) -> None:
    ranks.start(0, 1)
    assert look_up(ranks.client, "warm", prompt_of("a")) == 3
    ranks.set_timeout_ms(200)
    ranks.targets[1].hold()
    assert look_up(ranks.client, "first", prompt_of("a")) == 0
    # A lookup that is under way says nothing; whatever else it says is a sign of life.
    ranks.set_timeout_ms(LONG_MS)
    ranks.targets[1].let_go()
    wait_until_found(ranks, 3)
    # What was found too late was let go of.
    assert ranks.targets[1].released[:1] == ["first"]
    assert ranks.targets[0].released[:1] == ["first"]


def test_rank_that_starts_late_or_anew_is_found(ranks: Ranks) -> None:
    ranks.start(0)
    ranks.set_timeout_ms(100)
    assert ranks.client.layouts() is None
    ranks.set_timeout_ms(LONG_MS)
    for number in range(100):  # nobody is waited for
        assert ranks.client.lookup(f"{number}", prompt_of("a")) == 0
    assert not ranks.targets[0].asked
    ranks.start(1)
    wait_until_found(ranks, 3)
    ranks.servers[1].close()
    ranks.start(1)
    wait_until_found(ranks, 3)


def wait_until_found(ranks: Ranks, num_found: int) -> None:
    wait_until(lambda: look_up(ranks.client, "again", prompt_of("a")) == num_found)


def test_server_that_ends_is_a_miss_at_once_however_long_the_deadline(ranks: Ranks) -> None:
    ranks.start(0, 1)
    ranks.set_timeout_ms(600_000)
    assert look_up(ranks.client, "request", prompt_of("a")) == 3
    ranks.servers[1].close()
    assert look_up(ranks.client, "request", prompt_of("a")) == 0
    assert ranks.client.layouts() is None


def test_server_that_was_replaced_while_nobody_asked_costs_nothing(ranks: Ranks) -> None:
    """Once the connection is there again, which takes as long as it takes."""
    ranks.start(0, 1)
    found = []
    for pause_s in (0.05, 0.2, 1.0, 5.0, 20.0):
        wait_until_found(ranks, 3)
        ranks.servers[1].close()
        ranks.start(1)
        time.sleep(pause_s)
        found.append(look_up(ranks.client, "request", prompt_of("a")))
        if found[-1]:
            break
    assert found[-1] == 3


def test_deadline_is_that_of_now(ranks: Ranks) -> None:
    ranks.start(0, 1)
    ranks.set_timeout_ms(40_000)
    look_up(ranks.client, "first", prompt_of("a"))
    ranks.set_timeout_ms(20_000)
    look_up(ranks.client, "second", prompt_of("a"))
    assert [wait_s for _, _, wait_s in ranks.targets[0].asked] == [32, 16]


def test_servers_may_change_their_kind_under_a_client(ranks: Ranks) -> None:
    ranks.start(0, 1)
    for is_async in (True, False, True):
        wait_until_found(ranks, 3)
        ranks.config.set("enable_async_loading", is_async)
        for rank in (0, 1):
            ranks.servers[rank].close()
            ranks.start(rank)
    wait_until_found(ranks, 3)


def test_a_frame_that_cannot_be_read_is_answered(ranks: Ranks) -> None:
    ranks.start(0)
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(ranks.address.url(0))
        for frame in (b"", b"\xc1", b"{}", bytes(100)):
            socket.send(frame)
            assert socket.poll(LONG_MS)
            assert b"Failed" in socket.recv()
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(ranks.address.url(0))
        for frames in ([b"no delimiter"], [b"", b""], [b"a", b"b", b"", b"\xc1"]):
            stranger.send_multipart(frames)
        assert stranger.poll(LONG_MS)
    ranks.start(1)
    assert look_up(ranks.client, "request", prompt_of("a")) == 3


def test_server_that_cannot_listen_says_where() -> None:
    for server_class in (LMCacheLookupServer, LMCacheAsyncLookupServer):
        server = server_class(pathlib.Path("/no such folder/socket"), Rank(1, 1))
        with pytest.raises(ConfigError, match="cannot listen for lookups at"):
            server.start()
        server.close()


def test_addresses_are_as_documented(tmp_path: pathlib.Path) -> None:
    address = LookupAddress("/run/vllm", "engine/7", 3)
    assert str(address.path(2)) == "/run/vllm/engine_engine-7_service_lookup_lmcache_rpc_port_5"
    assert address.url(2) == f"ipc://{address.path(2)}"
    assert str(LookupAddress("/run/vllm", "e", "a").path(2)).endswith("_service_lookup_lmcache_rpc_port_a2")
    with pytest.raises(ConfigError, match="VLLM_RPC_BASE_PATH"):
        LookupAddress("/run/vllm", "e" * 80).path(0)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the folder"):
        LookupAddress(str(tmp_path / "file" / "below"), "e").make_folder()


def test_sockets_of_the_dead_are_removed_and_no_others(ranks: Ranks) -> None:
    ranks.start(0)
    dead, other = ranks.address.path(7), ranks.address.path(7).with_name("other")
    for path in (dead, other):
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    assert ranks.address.sweep() == 0  # too young
    assert ranks.address.sweep(lambda: time.time() + 60) == 1
    assert (dead.exists(), other.exists(), ranks.address.path(0).exists()) == (False, True, True)
    other.unlink()
    ranks.start(1)
    assert look_up(ranks.client, "request", prompt_of("a")) == 3
