"""Who may register over ZMQ: whoever knows the token and can read the pool folder, and nobody else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import msgspec
import pytest
import zmq

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.errors import RequestRefusedError
from lmcache.memory.mapping import read_nonce
from lmcache.protocol import messages as m
from lmcache.testing.waiting import PATIENCE_S
from lmcache.transport.client import Connection
from tests.conftest import new_pool_folder
from tests.server.running import RunningServer, running_server

TOKEN = "0123456789abcdef"
WRONG_TOKENS = ["", TOKEN[:-1], TOKEN + "0", TOKEN.upper(), "schlüssel"]
WRONG_NONCES = [b"", bytes(16), b"guess"]
MakeRegistration = Callable[[bytes, str], m.RegisterWorker | m.RegisterScheduler]


def worker(nonce: bytes, token: str) -> m.RegisterWorker:
    layout = KVLayout(16, 100, (KernelGroup(("l",), 4096, "bfloat16", (100, 1)),), "F", "p", False)
    return m.RegisterWorker("e", "org/m", 1, 0, msgspec.json.encode(layout), nonce, token=token)


def scheduler(nonce: bytes, token: str) -> m.RegisterScheduler:
    return m.RegisterScheduler("e", "org/m", 1, b'{"model": "org/m"}', nonce, token=token)


_UIDS = itertools.count(77)

REGISTRATIONS = pytest.mark.parametrize("make", [worker, scheduler])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One that asks for a token."""
    token_file = tmp_path_factory.mktemp("token") / "token"
    token_file.write_text(TOKEN + "\n")
    token_file.chmod(0o600)
    with running_server(new_pool_folder(), "--zmq-token-file", str(token_file)) as running:
        yield running


@pytest.fixture
def connection(server: RunningServer) -> Iterator[Connection]:
    """Of somebody whom the server has never heard of."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    opened = Connection(server.zmq_url, next(_UIDS), context)
    yield opened
    opened.close()
    context.destroy(linger=0)


def refused(connection: Connection, message: m.Request) -> str:
    """What the server says of it; nobody is registered by it."""
    with pytest.raises(RequestRefusedError) as caught:
        connection.call(message, 0, PATIENCE_S)
    assert caught.value.code == m.ErrorCode.FORBIDDEN
    with pytest.raises(RequestRefusedError) as unknown:
        connection.call(m.Ping(0), connection.boot_id, PATIENCE_S)
    assert unknown.value.code == m.ErrorCode.UNREGISTERED
    return str(caught.value)


@pytest.mark.parametrize("token", WRONG_TOKENS)
def test_hello_without_the_token_is_refused(connection: Connection, token: str) -> None:
    assert "lmcache.mp.token_file" in refused(connection, m.Hello(token))


@REGISTRATIONS
@pytest.mark.parametrize("token", WRONG_TOKENS)
def test_registration_without_the_token_is_refused(
    server: RunningServer, connection: Connection, make: MakeRegistration, token: str
) -> None:
    """It can read the pool, and never said hello."""
    assert "lmcache.mp.token_file" in refused(connection, make(read_nonce(server.folder), token))


@REGISTRATIONS
def test_hello_with_the_token_does_not_stand_for_the_registrations(
    server: RunningServer, connection: Connection, make: MakeRegistration
) -> None:
    assert isinstance(connection.call(m.Hello(TOKEN), 0, PATIENCE_S), m.Welcome)
    assert "lmcache.mp.token_file" in refused(connection, make(read_nonce(server.folder), ""))


@REGISTRATIONS
@pytest.mark.parametrize("nonce", WRONG_NONCES)
def test_whoever_cannot_read_the_pool_is_refused(
    server: RunningServer, connection: Connection, make: MakeRegistration, nonce: bytes
) -> None:
    said = refused(connection, make(nonce, TOKEN))
    assert str(server.folder) in said
    assert "--l1-group" in said


@REGISTRATIONS
def test_both_together_are_enough(server: RunningServer, connection: Connection, make: MakeRegistration) -> None:
    """No hello is needed: what is asked for comes with the registration."""
    registered = connection.call(make(read_nonce(server.folder), TOKEN), 0, PATIENCE_S)
    assert isinstance(registered, m.Registered)
    assert connection.call(m.Ping(registered.instance_id), connection.boot_id, PATIENCE_S) == m.Pong(True)
    assert connection.call(m.Unregister(), connection.boot_id, PATIENCE_S) == m.Done(1)
