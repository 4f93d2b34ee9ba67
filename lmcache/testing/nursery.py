"""A small process that forks the children of a test: all imports done once, no thread, no socket library started.

A fresh interpreter costs half a second, a fork some milliseconds. Children die with the nursery,
the nursery with the test.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable

import msgspec

from lmcache.testing import server_process, worker_process
from lmcache.testing.control import Channel

_PR_SET_PDEATHSIG = 1
_CLONE_NEWPID = 0x20000000
_ORDER_BYTES_MAX = 1 << 16

_MAINS: dict[str, Callable[[Channel, bytes], None]] = {
    "server": server_process.main,
    "worker": worker_process.main,
}


class _Birth(msgspec.Struct):
    kind: str
    config: bytes
    in_pid_namespace: bool


class Nursery:
    """The test's side. Thread-safe."""

    def __init__(self) -> None:
        ours, theirs = Channel.pair()
        self._socket = ours
        self._mutex = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lmcache.testing.nursery", str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )

    def fork(self, kind: str, config: msgspec.Struct, in_pid_namespace: bool = False) -> Channel:
        """A new child of this kind; it says `Ready` first."""
        ours, theirs = Channel.pair()
        birth = _Birth(kind, msgspec.msgpack.encode(config), in_pid_namespace)
        with self._mutex, theirs:
            socket.send_fds(self._socket, [msgspec.msgpack.encode(birth)], [theirs.fileno()])
        return Channel(ours)

    def close(self) -> None:
        """End it, and with it every child that still lives."""
        self._socket.close()
        self._process.wait()


def _serve(orders: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a child ended
    while True:
        packet, descriptors, _, _ = socket.recv_fds(orders, _ORDER_BYTES_MAX, 1)
        if not packet:
            return
        if os.fork() == 0:
            orders.close()
            _live(msgspec.msgpack.decode(packet, type=_Birth), descriptors[0])
        os.close(descriptors[0])


def _live(birth: _Birth, descriptor: int) -> None:
    """The whole life of a child; does not return."""
    status = 1
    try:
        _die_with_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if birth.in_pid_namespace:
            enter_pid_namespace()
        channel = Channel(socket.socket(fileno=descriptor))
        _MAINS[birth.kind](channel, birth.config)
        status = 0
    except BaseException:  # the root of a process
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def enter_pid_namespace() -> None:
    """Go on as the second process of a new PID namespace; raises OSError where that is not allowed.

    Not as the first: that one is immune to its own SIGKILL and SIGSTOP.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "cannot make a PID namespace")
    for _ in range(2):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            os._exit(0)
        _die_with_parent()


def can_make_pid_namespaces() -> bool:
    child = subprocess.run(
        [sys.executable, "-c", f"import ctypes; raise SystemExit(ctypes.CDLL(None).unshare({_CLONE_NEWPID}) != 0)"],
        check=False,
    )
    return child.returncode == 0


def main() -> None:
    _die_with_parent()
    _serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
