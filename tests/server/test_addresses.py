"""Addresses to listen on, against real sockets."""

from __future__ import annotations

import socket

import pytest

from lmcache.errors import ConfigError
from lmcache.http.listening import http_url, listen
from lmcache.server.addresses import zmq_url


def test_listening_socket_is_reachable_and_knows_its_url() -> None:
    with listen("localhost", 0, "--http-host", "--http-port") as listener:
        port = listener.getsockname()[1]
        assert http_url(listener) == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


def test_port_in_use_names_its_flag() -> None:
    with listen("127.0.0.1", 0, "--http-host", "--http-port") as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--http-port {port} is in use on 127.0.0.1"):
            listen("127.0.0.1", port, "--http-host", "--http-port")
        with pytest.raises(ConfigError, match=f"--port {port} is in use on localhost"):
            zmq_url("localhost", port)


def test_zmq_url_is_free_again_after_the_try() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert zmq_url("localhost", port) == f"tcp://127.0.0.1:{port}"
    assert zmq_url("*", port) == f"tcp://0.0.0.0:{port}"
    assert zmq_url("127.0.0.1", 0) == "tcp://127.0.0.1:*"


def test_address_of_another_host_and_unknown_name_name_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"--host 192\.0\.2\.1 is not an address of this host"):
        zmq_url("192.0.2.1", 0)
    with pytest.raises(ConfigError, match=r"--http-host no-such-host\.invalid cannot be resolved"):
        listen("no-such-host.invalid", 0, "--http-host", "--http-port")
