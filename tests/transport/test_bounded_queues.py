"""What waits for somebody slow is bounded: a client that does not read, a server that is busy, a loop that is stuck."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import zmq

from lmcache.testing.waiting import PATIENCE_S, wait_until
from lmcache.transport import server as server_module
from lmcache.transport.server import ServerLoop
from tests.conftest import Child, StartChild

# Far beyond what may wait (10,000 frames a direction and client) and what the sockets' buffers take.
NUM_FRAMES = 40_000
FRAME_BYTES = 4096
RSS_BYTES_MAX = NUM_FRAMES * FRAME_BYTES * 2 // 3
_PATIENCE_MS = int(PATIENCE_S * 1000)
# A loop that answers by the first byte: a large frame, how many frames came, its memory; or it waits to be let go.
LOOP = """
import pathlib, sys, threading
from lmcache.transport.server import ServerLoop
count = 0
def handle(peer, frame):
    global count
    count += frame[:1] == b"x"
    if frame[:1] == b"h":
        print("held", flush=True)
        sys.stdin.readline()
    status = pathlib.Path("/proc/self/status").read_text() if frame[:1] == b"m" else ""
    rss = b"".join(line.split()[1].encode() for line in status.splitlines() if line.startswith("VmRSS:"))
    return {b"x": bytes(4096), b"c": b"%d" % count, b"m": rss}.get(frame[:1], frame)
loop = ServerLoop(["tcp://127.0.0.1:*"], handle, lambda: None, 1.0, 1 << 20)
loop.start()
print(loop.endpoint, flush=True)
threading.Event().wait()
"""


class Peer:
    """A bare socket. `reads` false: it takes as little from the server as a socket can."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], url: str, reads: bool = True) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        if not reads:
            self.socket.setsockopt(zmq.RCVHWM, 1)
            self.socket.setsockopt(zmq.RCVBUF, 4096)
        self.socket.setsockopt(zmq.SNDTIMEO, _PATIENCE_MS)
        self.socket.connect(url)

    def take(self) -> bytes:
        assert self.socket.poll(_PATIENCE_MS), "the server does not answer"
        return self.socket.recv()

    def ask(self, frame: bytes) -> bytes:
        self.socket.send(frame)
        return self.take()

    @property
    def rss_bytes(self) -> int:
        return int(self.ask(b"m")) * 1024

    def count_until(self, last: bytes) -> int:
        """Read all there is; how many frames came before the answer to a last one."""
        count = 0
        while True:
            while self.socket.poll(1000):
                if self.socket.recv() == last:
                    return count
                count += 1
            self.socket.send(last)  # it may have been dropped, as others were


@pytest.fixture
def looping(start_child: StartChild) -> tuple[Child, str]:
    """The process of a loop, and its address."""
    child = start_child(LOOP)
    return child, child.read_line()


@pytest.fixture
def open_peer(context: zmq.Context[zmq.Socket[bytes]], looping: tuple[Child, str]) -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def open_one(reads: bool = True) -> Peer:
        peers.append(Peer(context, looping[1], reads))
        return peers[-1]

    yield open_one
    for peer in peers:
        peer.socket.close()


def test_a_client_that_never_reads_costs_a_bounded_queue_and_nobody_else(open_peer: Callable[..., Peer]) -> None:
    greedy, other = open_peer(reads=False), open_peer()
    before = other.rss_bytes
    for number in range(NUM_FRAMES):
        greedy.socket.send(b"x")
        if number % 1000 == 0:
            assert other.ask(b"echo") == b"echo"
    wait_until(lambda: int(other.ask(b"c")) == NUM_FRAMES)
    assert other.rss_bytes - before < RSS_BYTES_MAX
    assert greedy.count_until(b"last") < NUM_FRAMES // 2
    assert greedy.ask(b"echo") == b"echo", "it is answered again once it reads"


def test_a_busy_server_makes_its_clients_wait_and_not_its_memory_grow(
    open_peer: Callable[..., Peer], looping: tuple[Child, str]
) -> None:
    holder, flood, other = open_peer(), open_peer(), open_peer()
    before = other.rss_bytes
    holder.socket.send(b"hold")
    assert looping[0].read_line() == "held"
    num_sent, frame = 0, b"x" + bytes(FRAME_BYTES - 1)
    while num_sent < NUM_FRAMES and flood.socket.poll(1000, zmq.POLLOUT):
        flood.socket.send(frame, zmq.DONTWAIT)
        num_sent += 1
    assert num_sent < NUM_FRAMES // 2
    looping[0].write_line()
    assert holder.take() == b"hold"
    assert other.rss_bytes - before < RSS_BYTES_MAX
    wait_until(lambda: int(other.ask(b"c")) == num_sent)


class StuckLoop:
    """A loop in this process that answers nothing until it is let go. One peer waits for it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.is_free, self._is_stuck = threading.Event(), threading.Event()
        self.loop = ServerLoop(["tcp://127.0.0.1:*"], self._handle, lambda: None, 1.0, 1 << 20)
        self.loop.start()
        self.peer = Peer(context, self.loop.endpoint)
        self.peer.socket.send(b"asked")
        assert self._is_stuck.wait(PATIENCE_S)

    def _handle(self, peer: bytes, frame: bytes) -> bytes:
        self.peer_name = peer
        self._is_stuck.set()
        assert self.is_free.wait(2 * PATIENCE_S)
        return frame

    def post_many(self, count: int) -> bool:
        """From a thread of its own; whether that has ended in time."""
        posts = [b"%d" % number for number in range(count)]
        poster = threading.Thread(target=lambda: [self.loop.post(self.peer_name, post) for post in posts], daemon=True)
        poster.start()
        poster.join(PATIENCE_S)
        return not poster.is_alive()

    def close(self) -> None:
        self.is_free.set()
        self.loop.stop()
        self.peer.socket.close()


@pytest.fixture
def stuck(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[StuckLoop]:
    found = StuckLoop(context)
    yield found
    found.close()


def test_whoever_posts_does_not_wait_for_a_stuck_loop(stuck: StuckLoop) -> None:
    """It may hold what the loop needs to go on."""
    assert stuck.post_many(5000)
    stuck.is_free.set()
    assert stuck.peer.take() == b"asked"
    assert [stuck.peer.take() for _ in range(900)] == [b"%d" % number for number in range(900)]


def test_a_stop_after_many_posts_is_heard(stuck: StuckLoop) -> None:
    assert stuck.post_many(5000)
    stuck.is_free.set()
    stuck.loop.stop()
    assert not stuck.loop.is_alive


def test_posts_that_nobody_can_send_are_bounded(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go: whoever waited for them has long given up."""
    monkeypatch.setattr(server_module, "_POSTS_MAX", 100)
    stuck = StuckLoop(context)
    try:
        assert stuck.post_many(500)
        stuck.is_free.set()
        assert [stuck.peer.take() for _ in range(101)] == [b"asked", *(b"%d" % number for number in range(400, 500))]
    finally:
        stuck.close()
