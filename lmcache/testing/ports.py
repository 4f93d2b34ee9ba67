"""Ports for servers of tests, chosen before anybody listens there. Knows no server."""

from __future__ import annotations

import contextlib
import secrets
import socket

# Below those that Linux gives to clients: no connection of anybody takes one between this choice and the server's
# start, and whoever connects to one that nobody listens on is refused, and never connected to itself.
_FIRST, _END = 10_000, 32_768
_given: set[int] = set()


def free_port(count: int = 1) -> int:
    """The first of so many in a row. None is given twice by a process."""
    while True:
        first = _FIRST + secrets.randbelow(_END - _FIRST - count)
        ports = range(first, first + count)
        if _given.isdisjoint(ports) and _are_free(ports):
            _given.update(ports)
            return first


def _are_free(ports: range) -> bool:
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        for port in ports:
            stack.enter_context(socket.socket()).bind(("", port))
        return True
    return False
