"""A client's connection: deadlines against servers that are absent, stopped or killed; late answers."""

from __future__ import annotations

import pathlib
import shutil
import threading
from collections.abc import Callable

import pytest
import zmq

from lmcache.errors import (
    ConfigError,
    DeadlineExceededError,
    RequestRefusedError,
    ServerUnavailableError,
    StaleBootError,
)
from lmcache.protocol import messages as m
from lmcache.protocol.frames import decode_header, encode_frame
from lmcache.testing.ports import free_port
from lmcache.testing.waiting import wait_until
from lmcache.transport.client import Connection
from lmcache.transport.server import ServerLoop
from tests.conftest import FakeClock, StartChild
from tests.transport.conftest import Server

TIMEOUT_S = 20.0
SHORT_S = 0.1
Connect = Callable[..., Connection]


@pytest.fixture
def own_server(start_child: StartChild, pool_folder: pathlib.Path) -> Server:
    """A server that this test alone may stop and kill; nobody takes its port before a successor does."""
    return Server.start(start_child, str(pool_folder), free_port_url())


def welcome(connection: Connection) -> None:
    assert isinstance(connection.call(m.Hello(), 0, TIMEOUT_S), m.Welcome)


def free_port_url() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


def test_an_absent_server_costs_an_error_in_time(connect: Connect) -> None:
    connection = connect(free_port_url())
    with pytest.raises(DeadlineExceededError, match="no server at tcp://"):
        connection.call(m.Hello(), 0, SHORT_S)
    assert connection.post(m.Hello(), 0) is False


def test_a_server_that_starts_later_is_reached(
    connect: Connect, start_child: StartChild, pool_folder: pathlib.Path
) -> None:
    url = free_port_url()
    connection = connect(url)
    with pytest.raises(ServerUnavailableError):
        connection.call(m.Hello(), 0, SHORT_S)
    Server.start(start_child, str(pool_folder), url)
    welcome(connection)


def test_a_stopped_server_costs_an_error_in_time_and_its_late_answers_are_dropped(
    connect: Connect, own_server: Server
) -> None:
    connection = connect(own_server.url)
    welcome(connection)
    own_server.child.stop()
    for _ in range(3):
        with pytest.raises(DeadlineExceededError, match="did not answer Hello"):
            connection.call(m.Hello(), 0, SHORT_S)
    own_server.child.resume()
    assert connection.call(m.Ping(None), 0, TIMEOUT_S) == m.Pong(True), "not one of the late answers to Hello"
    assert connection.unsolicited == []


def test_a_server_killed_during_a_request_costs_an_error_in_time(connect: Connect, own_server: Server) -> None:
    connection = connect(own_server.ipc_url)
    welcome(connection)
    own_server.child.stop()
    number = connection.send(m.Hello(), 0)
    own_server.child.kill()
    assert connection.wait(number, SHORT_S) is None
    with pytest.raises(DeadlineExceededError):
        connection.call(m.Hello(), 0, SHORT_S)


def test_a_killed_server_is_missed_without_asking_it(connect: Connect, own_server: Server) -> None:
    connection = connect(own_server.url)
    welcome(connection)
    number = connection.send(m.Hello(), 0)
    assert connection.wait(number, TIMEOUT_S) is not None
    assert connection.is_connected
    own_server.child.kill()
    wait_until(lambda: not connection.is_connected)


def test_a_successor_has_another_boot_id_and_never_sees_what_its_predecessor_was_sent(
    connect: Connect, own_server: Server, start_child: StartChild, pool_folder: pathlib.Path
) -> None:
    connection = connect(own_server.url, 7)
    welcome(connection)
    old_boot_id = connection.boot_id
    own_server.child.stop()
    lost = connection.send(m.Hello(), 0)
    own_server.child.kill()
    Server.start(start_child, str(pool_folder), own_server.url)
    welcome(connection)
    assert connection.boot_id not in (0, old_boot_id)
    assert connection.wait(lost, SHORT_S) is None
    with pytest.raises(StaleBootError):
        connection.call(m.Unregister(), old_boot_id, TIMEOUT_S)


def test_several_requests_in_flight_are_told_apart(connect: Connect, own_server: Server) -> None:
    connection = connect(own_server.url)
    hello, ping = connection.send(m.Hello(), 0, TIMEOUT_S), connection.send(m.Ping(None), 0)
    assert connection.wait(ping, TIMEOUT_S) == m.Pong(True)
    assert isinstance(connection.wait(hello, TIMEOUT_S), m.Welcome)


def test_a_thousand_requests_leave_nothing_waiting(connect: Connect, own_server: Server) -> None:
    connection = connect(own_server.ipc_url)
    for _ in range(1000):
        assert connection.call(m.Ping(None), 0, TIMEOUT_S) == m.Pong(True)
    assert connection._waiting == {}


@pytest.fixture
def odd_server(context: zmq.Context[zmq.Socket[bytes]]):
    """A peer that answers with whatever the test wants: `answers[i]` to request i."""
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    answers: list[Callable[[int], list[bytes]]] = []

    def run() -> None:
        for make in answers:
            peer, frame = router.recv_multipart()
            for answer in make(decode_header(frame).number):
                router.send_multipart((peer, answer))

    thread = threading.Thread(target=run)
    yield f"tcp://127.0.0.1:{port}", answers, thread
    thread.join(TIMEOUT_S)
    router.close()


def test_what_the_server_says_first_is_kept_apart_from_answers(connect: Connect, odd_server) -> None:
    url, answers, thread = odd_server
    query = m.ChecksumQuery(3, [1, 2], 16, False)
    answers.append(lambda n: [encode_frame(0, 9, 0, query), encode_frame(n, 9, 0, m.Pong(True))])
    thread.start()
    connection = connect(url)
    assert connection.call(m.Ping(None), 0, TIMEOUT_S) == m.Pong(True)
    assert connection.unsolicited == [query]
    assert connection.boot_id == 9


def test_answers_to_other_numbers_are_dropped(connect: Connect, odd_server) -> None:
    url, answers, thread = odd_server
    answers.append(lambda n: [encode_frame(n + 5, 9, 0, m.Done(1)), encode_frame(n, 9, 0, m.Done(2))])
    thread.start()
    assert connect(url).call(m.Ping(None), 0, TIMEOUT_S) == m.Done(2)


@pytest.mark.parametrize(
    "answer", [b"", b"noise", encode_frame(1, 9, 0, m.Hello())[:33]], ids=["empty", "noise", "cut"]
)
def test_an_answer_that_cannot_be_read_fails_who_waits(connect: Connect, odd_server, answer: bytes) -> None:
    url, answers, thread = odd_server
    answers.append(lambda n: [answer])
    thread.start()
    with pytest.raises(RequestRefusedError) as refused:
        connect(url).call(m.Ping(None), 0, TIMEOUT_S)
    assert refused.value.code == m.ErrorCode.BAD_FRAME


class SlowToConnect(Connection):
    """Finds its server after a minute, by the clock; keeps how long it was then told to wait."""

    def send(self, message: m.Request, boot_id: int, timeout_s: float = 0.0) -> int:
        self._clock.advance(60)
        return 1

    def wait(self, number: int, timeout_s: float) -> m.Reply | None:
        self.waited_s = timeout_s
        return None


def test_time_spent_on_finding_the_server_is_not_waited_again(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    connection = SlowToConnect(free_port_url(), 1, context, FakeClock())
    with pytest.raises(DeadlineExceededError):
        connection.call(m.Hello(), 0, 90)
    assert connection.waited_s == 30
    connection.close()


def test_an_address_that_cannot_be_had_is_a_clear_error(own_server: Server) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {own_server.url}"):
        ServerLoop([own_server.url], lambda peer, frame: frame, lambda: None, 1.0, 1 << 20)


def test_a_post_reaches_a_peer_and_one_that_is_gone_is_dropped(connect: Connect) -> None:
    peers: list[bytes] = []

    def handle(peer: bytes, frame: bytes) -> bytes:
        peers.append(peer)
        return encode_frame(decode_header(frame).number, 3, 0, m.Done())

    loop = ServerLoop(["tcp://127.0.0.1:*"], handle, lambda: None, 1.0, 1 << 20)
    loop.start()
    connection = connect(loop.endpoint)
    assert connection.call(m.Ping(None), 0, TIMEOUT_S) == m.Done()
    loop.post(b"nobody", encode_frame(0, 3, 0, m.Done(1)))
    loop.post(peers[0], encode_frame(0, 3, 0, m.Done(2)))
    connection.receive(TIMEOUT_S)
    assert connection.unsolicited == [m.Done(2)]
    loop.stop()
    loop.stop()
    assert not loop.is_alive


def test_a_pool_folder_left_by_a_killed_server_is_adopted(
    own_server: Server, start_child: StartChild, pool_folder: pathlib.Path
) -> None:
    own_server.child.kill()
    heir = Server.start(start_child, str(pool_folder))
    heir.child.write_line()
    assert heir.child.read_line() == "stopped"
    assert heir.child.wait() == 0
    assert not pool_folder.exists()
    shutil.rmtree(pool_folder, ignore_errors=True)
