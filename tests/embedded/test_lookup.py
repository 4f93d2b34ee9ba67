"""Lookup client and servers over real sockets: the minimum over ranks, within a deadline, whatever ranks do."""

from __future__ import annotations

import pathlib
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup.address import LookupAddress
from lmcache.embedded.lookup.client import LMCacheLookupClient
from lmcache.embedded.lookup.factory import LookupClientFactory
from lmcache.embedded.lookup.server import LMCacheLookupServer
from lmcache.errors import ConfigError, DeclinedError, KeyFormatError
from lmcache.testing.paged_memory import make_layout
from tests.conftest import FakeClock
from tests.embedded.site import prompt_of

LONG_MS = 20_000


class Rank:
    """A `LookupTarget` that finds what it is told to, or raises it."""

    def __init__(self, num_blocks: int, num_found: int) -> None:
        self.layout = make_layout(num_blocks)
        self.found: int | Exception = num_found
        self.asked: list[tuple[str, Prompt, float]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def introduce(self) -> KVLayout:
        if isinstance(self.found, DeclinedError):
            raise self.found
        return self.layout

    def lookup(self, lookup_id: str, prompt: Prompt, wait_s: float) -> int:
        self.asked.append((lookup_id, prompt, wait_s))
        self.may_answer.wait(20)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Ranks:
    def __init__(self, folder: pathlib.Path) -> None:
        self.timeout_ms = LONG_MS
        self.clock = FakeClock()
        self.targets = [Rank(10, 5), Rank(20, 3)]
        self.address = LookupAddress(str(folder), uuid.uuid4().hex[:8])
        self.factory = LookupClientFactory(self.address, 2, lambda: self.timeout_ms)
        self.servers: dict[int, Any] = {}
        self.client = self.factory.create_lookup_client()

    def start(self, *ranks: int) -> None:
        for rank in ranks:
            self.servers[rank] = self.factory.create_lookup_server(rank, self.targets[rank])
            self.servers[rank].start()

    def close(self) -> None:
        for target in self.targets:
            target.may_answer.set()
        self.client.close()
        for server in self.servers.values():
            server.close()


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """In a folder with a short name: the kernel takes no long ones for sockets."""
    with tempfile.TemporaryDirectory(prefix="lmc-") as folder:
        found = Ranks(pathlib.Path(folder) / "rpc")
        yield found
        found.close()
        assert not list(pathlib.Path(folder).glob("rpc/*"))


def test_what_all_ranks_have_is_found(ranks: Ranks) -> None:
    ranks.start(0, 1)
    prompt = prompt_of("abcde", salt="tenant")
    assert ranks.client.lookup("request", prompt) == 3
    for target in ranks.targets:
        ((lookup_id, asked, wait_s),) = target.asked
        assert (lookup_id, asked) == ("request", prompt)
        assert 0 < wait_s < LONG_MS / 1000
    assert ranks.client.lookup("request", prompt, may_wait=False) == 3
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
    assert ranks.client.lookup("request", prompt_of("a")) == 0


@pytest.mark.parametrize("error", [KeyFormatError("a bad salt"), ZeroDivisionError("a bug")])
def test_rank_that_fails_is_a_miss_and_answers_the_next_question(ranks: Ranks, error: Exception) -> None:
    ranks.start(0, 1)
    ranks.targets[0].found = error
    assert ranks.client.lookup("request", prompt_of("a")) == 0
    ranks.targets[0].found = 4
    assert ranks.client.lookup("request", prompt_of("a")) == 3


def test_silent_rank_costs_one_deadline_and_is_noticed_when_it_comes_back(ranks: Ranks) -> None:
    ranks.start(0, 1)
    assert ranks.client.lookup("warm", prompt_of("a")) == 3
    ranks.timeout_ms = 200
    ranks.targets[1].may_answer.clear()
    assert ranks.client.lookup("first", prompt_of("a")) == 0
    # Nobody is asked, and nobody is waited for.
    ranks.timeout_ms = LONG_MS
    for number in range(100):
        assert ranks.client.lookup(f"{number}", prompt_of("a")) == 0
    assert [target.asked[-1][0] for target in ranks.targets] == ["first", "first"]
    ranks.targets[1].may_answer.set()
    wait_until_found(ranks, 3)
    # The answer that came too late was nobody's.
    assert ranks.targets[1].asked[-1][0] == "again"


def test_rank_that_starts_late_or_anew_is_found(ranks: Ranks) -> None:
    ranks.start(0)
    ranks.timeout_ms = 100
    assert ranks.client.layouts() is None
    ranks.timeout_ms = LONG_MS
    ranks.start(1)
    wait_until_found(ranks, 3)
    ranks.servers[1].close()
    ranks.start(1)
    wait_until_found(ranks, 3)


def wait_until_found(ranks: Ranks, num_found: int) -> None:
    event = threading.Event()
    for _ in range(2000):
        if ranks.client.lookup("again", prompt_of("a")) == num_found:
            return
        event.wait(0.01)
    raise AssertionError("the rank was not noticed")


def test_a_frame_that_cannot_be_read_is_answered(ranks: Ranks) -> None:
    ranks.start(0)
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(ranks.address.url(0))
        for frame in (b"", b"\xc1", b"{}", bytes(100)):
            socket.send(frame)
            assert socket.poll(LONG_MS)
            assert b"Failed" in socket.recv()


def test_server_that_cannot_listen_says_where(ranks: Ranks) -> None:
    server = LMCacheLookupServer(pathlib.Path("/no such folder/socket"), ranks.targets[0])
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
    assert ranks.client.lookup("request", prompt_of("a")) == 3


def test_client_is_the_documented_class(ranks: Ranks) -> None:
    assert type(ranks.client) is LMCacheLookupClient
    assert type(ranks.factory.create_lookup_server(0, ranks.targets[0])) is LMCacheLookupServer
