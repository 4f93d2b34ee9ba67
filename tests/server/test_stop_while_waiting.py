"""A server that stops while lookups wait for L2: each of them is answered, and with what L1 holds."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator

import pytest
import zmq

from lmcache.engine.cache_server import EngineConfig
from lmcache.engine.pool import PoolConfig
from lmcache.l2.registry import parse_adapters
from lmcache.memory.pool_files import Geometry
from lmcache.protocol import messages as m
from lmcache.protocol.frames import decode_header, decode_reply, encode_frame
from lmcache.server.local_server import LocalServer, LocalServerConfig
from lmcache.storage.manager import StorageConfig
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry
from tests.conftest import FakeClock
from tests.engine.conftest import CHUNK_SIZE, UNIT_BYTES
from tests.engine.tiered import MEMORY, Tiered, wait_until

DIGESTS = [bytes([number]) * 32 for number in range(1, 5)]
SCHEDULER = 100
_ANSWER_MS = 30_000


@pytest.fixture
def server(pool_folder: pathlib.Path) -> Iterator[LocalServer]:
    """Without its reaper, which would miss the locks of clients that are none."""
    config = EngineConfig(
        PoolConfig(pool_folder, Geometry(16 * UNIT_BYTES, 64)), chunk_size=CHUNK_SIZE,
        storage=StorageConfig(parse_adapters([MEMORY]), drain_timeout_s=0.1),
    )  # fmt: skip
    server = LocalServer(LocalServerConfig(config, "tcp://127.0.0.1:*"), MetricRegistry(), PeriodicThreadRegistry())
    server.engine.storage.start(server.threads)
    server.loop.start()
    server.engine.pool.wait_until_populated(30)
    yield server
    server.stop(keep=False)


@pytest.fixture
def dealer(server: LocalServer) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(server.loop.endpoint)
        yield socket


def send_lookup(server: LocalServer, dealer: zmq.Socket[bytes], number: int) -> None:
    asked = m.Lookup(f"r{number}", "", b"".join(DIGESTS), 60.0)
    dealer.send(encode_frame(number, server.engine.boot_id, SCHEDULER, asked))


def test_lookups_that_wait_are_answered_before_the_end(server: LocalServer, dealer: zmq.Socket[bytes]) -> None:
    tiered = Tiered(server.engine, FakeClock())
    tiered.join()
    tiered.write(DIGESTS)
    tiered.wait_until_stored(len(DIGESTS))
    server.engine.clear()
    tiered.write(DIGESTS[:1])
    adapter, go_on = server.engine.storage.tiers()[0].adapter, threading.Event()
    load = adapter.load
    adapter.load = lambda key, target: load(key, target) if go_on.wait(60) else None  # type: ignore
    numbers = [1, 2, 3]
    for number in numbers:
        send_lookup(server, dealer, number)
    wait_until(lambda: server.engine.storage.prefetches.num_jobs == len(numbers))
    stopping = threading.Thread(target=server.stop, args=(False,))
    stopping.start()
    try:
        answers = {}
        for _ in numbers:
            assert dealer.poll(_ANSWER_MS), "nobody answers"
            frame = dealer.recv()
            answers[decode_header(frame).number] = decode_reply(frame)
        assert sorted(answers) == numbers
        for answer in answers.values():
            assert isinstance(answer, m.Found)
            tiered.assert_bytes(answer, DIGESTS[:1])
    finally:
        go_on.set()
        stopping.join(30)
    assert not stopping.is_alive()


def test_a_lookup_that_comes_while_it_stops_does_not_wait(server: LocalServer, dealer: zmq.Socket[bytes]) -> None:
    tiered = Tiered(server.engine, FakeClock())
    tiered.join()
    tiered.write(DIGESTS)
    tiered.wait_until_stored(len(DIGESTS))
    server.engine.clear()
    server.engine.answer_waiting()
    send_lookup(server, dealer, 1)
    assert dealer.poll(_ANSWER_MS)
    assert decode_reply(dealer.recv()) == m.Found(0, b"")
