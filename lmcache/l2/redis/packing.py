"""Commands on the wire with a value in parts: header and payload become one string without being copied together.

redis-py lets a connection be given its packer. Its own would copy a payload three times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hiredis
import redis


@dataclass(frozen=True, slots=True)
class Parts:
    """One argument of a command, sent piece by piece."""

    pieces: tuple[bytes | memoryview, ...]

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


class PartsPacker:
    """What redis-py asks of a packer: the pieces to send, in order."""

    def pack(self, *args: Any) -> list[bytes | memoryview]:
        # The name may be of two words, such as CLUSTER SLOTS.
        args = (*args[0].split(), *args[1:])
        if not any(isinstance(arg, Parts) for arg in args):
            return [hiredis.pack_command(args)]
        output: list[bytes | memoryview] = []
        waiting = b"*%d\r\n" % len(args)
        for arg in args:
            if isinstance(arg, Parts):
                output += [waiting + b"$%d\r\n" % len(arg), *arg.pieces]
                waiting = b"\r\n"
            else:
                content = _encoded(arg)
                waiting += b"$%d\r\n%b\r\n" % (len(content), content)
        return [*output, waiting]


def _encoded(arg: bytes | str | int) -> bytes:
    return arg if isinstance(arg, bytes) else str(arg).encode()


class TCPConnection(redis.Connection):
    def __init__(self, **settings: Any) -> None:
        super().__init__(command_packer=PartsPacker(), **settings)  # type: ignore[no-untyped-call]


class TLSConnection(redis.SSLConnection):
    def __init__(self, **settings: Any) -> None:
        super().__init__(command_packer=PartsPacker(), **settings)


class UnixConnection(redis.UnixDomainSocketConnection):
    def __init__(self, **settings: Any) -> None:
        super().__init__(command_packer=PartsPacker(), **settings)  # type: ignore[no-untyped-call]
