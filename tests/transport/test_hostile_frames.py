"""Whatever arrives at a real server is answered, and the next request is served."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcache.errors import RequestRefusedError, StaleBootError
from lmcache.protocol import messages as m
from lmcache.protocol.frames import FRAME_BYTES_MAX, encode_frame
from lmcache.transport.client import Connection
from tests.protocol.test_messages import REQUESTS, messages
from tests.transport.conftest import ANSWER_MS, RawSocket, Server

TIMEOUT_S = 20.0
HELLO = encode_frame(5, 0, 1, m.Hello())
one_socket = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_still_serves(raw: RawSocket) -> None:
    number, reply = raw.ask(HELLO)
    assert number == 5
    assert isinstance(reply, m.Welcome)


def assert_failure(answer: tuple[int, m.Reply], number: int, code: m.ErrorCode) -> str:
    assert answer[0] == number
    assert isinstance(answer[1], m.Failure)
    assert answer[1].code == code
    return answer[1].text


@one_socket
@given(st.binary(max_size=300))
def test_noise_is_a_bad_frame(raw: RawSocket, noise: bytes) -> None:
    assert_failure(raw.ask(noise), 0, m.ErrorCode.BAD_FRAME)
    assert_still_serves(raw)


@one_socket
@given(body=st.binary(max_size=300))
def test_noise_behind_a_good_header_is_a_bad_message(raw: RawSocket, body: bytes) -> None:
    assert_failure(raw.ask(HELLO[:32] + body), 5, m.ErrorCode.BAD_MESSAGE)
    assert_still_serves(raw)


@one_socket
@given(message=messages(REQUESTS), cut=st.integers(1, 300))
def test_truncated_frames_are_answered(raw: RawSocket, message, cut: int) -> None:
    frame = encode_frame(5, 0, 1, message)
    left = frame[: max(0, len(frame) - cut)]
    expected = (5, m.ErrorCode.BAD_MESSAGE) if len(left) >= 32 else (0, m.ErrorCode.BAD_FRAME)
    assert_failure(raw.ask(left), *expected)
    assert_still_serves(raw)


@settings(one_socket, max_examples=150)
@given(message=messages(REQUESTS), data=st.data())
def test_changed_frames_are_answered(raw: RawSocket, message, data: st.DataObject) -> None:
    frame = bytearray(encode_frame(5, 0, 1, message))
    for _ in range(data.draw(st.integers(0, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    raw.ask(bytes(frame))
    assert_still_serves(raw)


@one_socket
@given(st.lists(st.binary(max_size=60), min_size=2, max_size=6))
def test_messages_of_many_parts_are_bad_frames(raw: RawSocket, parts: list[bytes]) -> None:
    assert_failure(raw.ask(*parts), 0, m.ErrorCode.BAD_FRAME)
    assert_failure(raw.ask(HELLO, HELLO), 0, m.ErrorCode.BAD_FRAME)
    assert_still_serves(raw)


def test_an_empty_frame_is_a_bad_frame(raw: RawSocket) -> None:
    assert_failure(raw.ask(b""), 0, m.ErrorCode.BAD_FRAME)
    assert_still_serves(raw)


def test_another_version_is_told_both_versions(raw: RawSocket) -> None:
    text = assert_failure(raw.ask(HELLO[:2] + struct.pack("<H", 77) + HELLO[4:]), 5, m.ErrorCode.BAD_VERSION)
    assert "version 77" in text
    assert "install the same lmcache release" in text
    assert_still_serves(raw)


def test_another_program_is_told_so(raw: RawSocket) -> None:
    text = assert_failure(raw.ask(b"GET / HTTP/1.1\r\nHost: localhost:5555\r\n\r\n"), 0, m.ErrorCode.BAD_FRAME)
    assert "is another program using this port?" in text


def test_a_frame_beyond_the_bound_costs_its_sender_the_connection_only(open_raw: Callable[[], RawSocket]) -> None:
    sender, other = open_raw(), open_raw()
    assert_still_serves(sender)
    assert_still_serves(other)
    monitor = sender.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    sender.socket.send(HELLO + bytes(FRAME_BYTES_MAX))
    assert monitor.poll(ANSWER_MS), "it may go on"
    sender.socket.disable_monitor()
    monitor.close(linger=0)
    assert not sender.socket.poll(0), "an answer would have come before the end"
    assert_still_serves(other)
    assert_still_serves(open_raw())


def test_the_largest_frame_is_answered(raw: RawSocket) -> None:
    frame = HELLO + bytes(FRAME_BYTES_MAX - len(HELLO))
    assert_failure(raw.ask(frame), 5, m.ErrorCode.BAD_MESSAGE)
    assert_still_serves(raw)


def test_random_tcp_bytes_do_not_stop_the_server(raw: RawSocket, server: Server) -> None:
    host, port = server.url.removeprefix("tcp://").split(":")
    for noise in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 8, b"\xff" + bytes(8) + b"\x7f" + b"\x03" * 80, b""):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(noise)
    assert_still_serves(raw)


NEED_A_CLIENT = [
    m.Unregister(), m.Lookup("r", "", b""), m.Hint("r", "", b""), m.Release("r"), m.EndSession("r"),
    m.ResetEngine(b"e"), m.Reserve(1, b"", "", b""), m.Commit(1, b""), m.AbortBatch(1),
    m.ChecksumResult(1, []),
]  # fmt: skip


@pytest.mark.parametrize("message", NEED_A_CLIENT, ids=lambda message: type(message).__name__)
def test_whoever_is_not_registered_is_told_so(
    connect: Callable[..., Connection], server: Server, message: m.Request
) -> None:
    connection = connect(server.url, 4242)
    connection.call(m.Hello(), 0, TIMEOUT_S)
    with pytest.raises(RequestRefusedError, match="register first") as refused:
        connection.call(message, connection.boot_id, TIMEOUT_S)
    assert refused.value.code == m.ErrorCode.UNREGISTERED
    with pytest.raises(StaleBootError, match="restarted; register again"):
        connection.call(message, connection.boot_id ^ 1, TIMEOUT_S)


def test_a_stranger_may_ask_who_is_there_and_probe(connect: Callable[..., Connection], server: Server) -> None:
    connection = connect(server.ipc_url)
    welcome = connection.call(m.Hello(), 0, TIMEOUT_S)
    assert isinstance(welcome, m.Welcome)
    assert (welcome.chunk_size, welcome.hash_algorithm, welcome.ipc_url) == (16, "blake3", server.ipc_url)
    assert connection.call(m.Ping(None), 0, TIMEOUT_S) == m.Pong(True)
    with pytest.raises(RequestRefusedError) as refused:
        connection.call(m.Ping(0), connection.boot_id, TIMEOUT_S)
    assert refused.value.code == m.ErrorCode.UNREGISTERED
