"""The control channel between a test and the processes it starts: orders down, reports up.

Not part of the product's protocol. A child answers every order once, in order; what it
says on its own account (`Ready`, `FaultReached`, `Stored`, `WrongBytes`) comes in between.
"""

from __future__ import annotations

import select
import socket

import msgspec

from lmcache.testing.faults import Fault

_MESSAGE_BYTES_MAX = 1 << 17


class _Message(msgspec.Struct, tag=True):
    pass


# Orders to any child


class Arm(_Message):
    """The next fault; None disarms."""

    fault: Fault | None


class Quit(_Message):
    """End in an orderly way; for a server, keep the pool or not. Answered before it happens."""

    keep: bool = False


# Orders to a server


class Cycle(_Message):
    """Move the clock, run the eviction loop and the reaper once, check every table. Answer: ServerReport."""

    advance_s: float = 0.0
    reaps: bool = True


class ClearAll(_Message):
    force: bool = True


# Orders to an engine


class Announce(_Message):
    """These chunks are about to be computed on every rank; a `Store` of the same names may follow."""

    names: list[str]


class Store(_Message):
    """Compute these chunks and store them on every rank. Answer: StoreReport."""

    names: list[str]


class Look(_Message):
    """A locking lookup. Answer: Looked."""

    request_id: str
    names: list[str]


class Keep(_Message):
    """Take less than was promised: the first chunks only. Answer: Looked."""

    request_id: str
    promise: bytes
    num_chunks: int


class Load(_Message):
    """Load what a lookup promised. Answer: LoadReport."""

    promise: bytes


class End(_Message):
    request_id: str


class Verify(_Message):
    """Look each of these chunks up and load it. Answer: Verified."""

    names: list[str]


class AbortMany(_Message):
    """So many requests that are looked up and then ended, cancelled unanswered, or forgotten."""

    num_requests: int
    names: list[str]


class Traffic(_Message):
    """Random requests over prompts of these sizes until the next order."""

    seed: int
    num_prompts: int
    chunks_per_prompt: int


class Pause(_Message):
    """Answered once nothing is under way."""


class WaitJoined(_Message):
    timeout_s: float = 50.0


# Answers


class Done(_Message):
    count: int = 0


class Failed(_Message):
    """The order raised; the text is the traceback."""

    text: str


class ServerReport(_Message):
    num_objects: int
    num_writing: int
    num_quarantined: int
    num_locked: int
    num_sessions: int
    num_clients: int
    used_bytes: int
    num_recovered: int
    error: str = ""

    @property
    def is_settled(self) -> bool:
        return not (self.num_writing or self.num_quarantined or self.num_locked)


class StoreReport(_Message):
    """Outcome by rank, and how many chunks each committed."""

    outcomes: list[str]
    num_stored: list[int]


class Looked(_Message):
    """`promise` goes into a `Load`, of this engine or of another one."""

    num_chunks: int
    promise: bytes


class LoadReport(_Message):
    is_ok: bool
    error: str
    num_wrong_bytes: int


class Verified(_Message):
    """Chunks that were not found or not loaded."""

    missing: list[str]


# Said unasked


class Ready(_Message):
    """`pid` is what the test sees, whatever namespace the child is in."""

    pid: int


class FaultReached(_Message):
    step: str


class Stored(_Message):
    """The server acknowledged the commit of these chunks of a rank."""

    rank: int
    names: list[str]


class WrongBytes(_Message):
    """A load reported success, and this is not what the chunk holds."""

    rank: int
    name: str
    num_bytes: int


class TrafficCount(_Message):
    """Loads that ended well and not, since the last of these."""

    num_ok: int
    num_failed: int


Message = (
    Arm | Quit | Cycle | ClearAll | Announce | Store | Look | Keep | Load | End | Verify | AbortMany | Traffic | Pause
    | WaitJoined | Done | Failed | ServerReport | StoreReport | Looked | LoadReport | Verified
    | Ready | FaultReached | Stored | WrongBytes | TrafficCount
)  # fmt: skip
Order = (
    Arm | Quit | Cycle | ClearAll | Announce | Store | Look | Keep | Load | End | Verify | AbortMany | Traffic | Pause
    | WaitJoined
)  # fmt: skip
Answer = Done | Failed | ServerReport | StoreReport | Looked | LoadReport | Verified
ANSWERS = (Done, Failed, ServerReport, StoreReport, Looked, LoadReport, Verified)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class ChannelClosedError(Exception):
    """The other end is gone."""


class Channel:
    """One end. Sending is thread-safe (a message is one packet), receiving is not."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        try:
            self._socket.send(_encode(message))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosedError from error

    def receive(self, timeout_s: float | None) -> Message | None:
        """The next message, or None if none came in time (None waits for ever)."""
        ready, _, _ = select.select([self._socket], [], [], timeout_s)
        if not ready:
            return None
        try:
            packet = self._socket.recv(_MESSAGE_BYTES_MAX)
        except ConnectionResetError as error:
            raise ChannelClosedError from error
        if not packet:
            raise ChannelClosedError
        message: Message = _decode(packet)
        return message

    def close(self) -> None:
        self._socket.close()
