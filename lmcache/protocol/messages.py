"""Every message that travels between an engine process and the server.

Requests carry digests as one blob (32 bytes each), places as one blob of native 64-bit
words: (slot, slot word, offset, length) per chunk and rank, chunk-major. Both ends are on
one host. Messages are arrays on the wire; fields may be added at the end, with a default.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

import msgspec

PROTOCOL_VERSION = 1


class ErrorCode(StrEnum):
    BAD_FRAME = "bad_frame"
    BAD_VERSION = "bad_version"
    BAD_MESSAGE = "bad_message"
    UNREGISTERED = "unregistered"
    STALE_BOOT = "stale_boot"
    FORBIDDEN = "forbidden"
    DECLINED = "declined"
    INVALID = "invalid"
    NOT_READY = "not_ready"
    INTERNAL = "internal"


class ReserveStatus(IntEnum):
    """What became of one digest of a reserve."""

    RESERVED = 0
    EXISTS = 1  # committed already
    BUSY = 2  # another writer holds it
    NO_ROOM = 3


class _Message(msgspec.Struct, array_like=True, frozen=True, tag=True):
    pass


# Conversation


class Hello(_Message, frozen=True):
    """First contact: who are you? Needs no registration."""

    token: str = ""


class Welcome(_Message, frozen=True):
    server_version: str
    pool_folder: str
    pool_id: bytes
    index_inode: int
    chunk_size: int
    hash_algorithm: str
    ipc_url: str
    wants_hints: bool


class RegisterWorker(_Message, frozen=True):
    """One rank of an engine. `layout` is a `core.layout.KVLayout` as JSON; `writing` are the
    slots (slot, slot word) this client may still be writing to; it owns no others. `attempt`
    grows with each registration, so that one that arrives late frees nothing."""

    engine_id: str
    model_name: str
    world_size: int
    rank: int
    layout: bytes
    nonce: bytes
    attempt: int = 1
    writing: bytes = b""
    token: str = ""


class RegisterScheduler(_Message, frozen=True):
    """The scheduler of an engine. `model_facts` is JSON; `epoch` is set once it was reset."""

    engine_id: str
    model_name: str
    world_size: int
    model_facts: bytes
    nonce: bytes
    epoch: bytes = b""
    wants_events: bool = False
    token: str = ""


class Registered(_Message, frozen=True):
    """`root` is empty until every rank of the engine has registered."""

    instance_id: int
    root: bytes
    missing_ranks: list[int]
    chunk_bytes: list[int]


class Unregister(_Message, frozen=True):
    pass


class Ping(_Message, frozen=True):
    """A heartbeat. `instance_id` None: a prober nobody tracks. `event_cursor`: last event seen."""

    instance_id: int | None = None
    event_cursor: int = 0


class Pong(_Message, frozen=True):
    """`removed` are digests of this engine's root that left L1, for engines that asked for events."""

    ok: bool
    event_cursor: int = 0
    removed: bytes = b""


# Scheduler


class Lookup(_Message, frozen=True):
    """Which prefix is held? The chunks found stay until released. Idempotent.

    `wait_s`: the answer may take so long, if that makes it longer: what L2 holds of the prompt
    is fetched meanwhile. 0: only what L1 holds counts.
    """

    request_id: str
    cache_salt: str
    digests: bytes
    wait_s: float = 0.0


class Found(_Message, frozen=True):
    num_chunks: int
    places: bytes


class Hint(_Message, frozen=True):
    """A request was added and will be looked up soon; takes no lock. Answered with what is held now."""

    request_id: str
    cache_salt: str
    digests: bytes


class Release(_Message, frozen=True):
    """Keep the locks of the first `num_chunks` chunks of a request, give back the rest."""

    request_id: str
    num_chunks: int = 0


class EndSession(_Message, frozen=True):
    request_id: str


class ResetEngine(_Message, frozen=True):
    """Weights or state of this engine changed: nothing written before is its KV any more."""

    epoch: bytes


# Worker


class Reserve(_Message, frozen=True):
    """`batch_id` names the batch for `AbortBatch`, should the answer get lost; `attempt` is that of
    the registration it was made under: one that a later registration overtook is refused."""

    batch_id: int
    root: bytes
    cache_salt: str
    digests: bytes
    attempt: int = 1


class Reserved(_Message, frozen=True):
    """`statuses`: one `ReserveStatus` byte per digest; places of the reserved ones."""

    statuses: bytes
    places: bytes


class Commit(_Message, frozen=True):
    """These slots (slot, slot word) of a batch are written; the rest of the batch is given up."""

    batch_id: int
    slots: bytes


class Committed(_Message, frozen=True):
    num_accepted: int
    num_refused: int


class AbortBatch(_Message, frozen=True):
    """Give a whole batch up, also one whose answer was lost. Idempotent."""

    batch_id: int


class Transferred(_Message, frozen=True):
    """A worker copied a request's chunks into the pool or out of it: for the server's counters."""

    is_load: bool
    num_chunks: int
    num_bytes: int
    duration_s: float
    cache_salt: str = ""
    is_ok: bool = True


class ChecksumQuery(_Message, frozen=True):
    """Server to a worker's control connection: MD5 of engine blocks, as they are now.

    After `time_limit_s` nobody waits for the answer (0: no limit)."""

    query_id: int
    block_ids: list[int]
    chunk_size: int
    layerwise: bool
    time_limit_s: float = 0.0


class ChecksumResult(_Message, frozen=True):
    """Worker to server: a row per layer in the order of the model, or a single one. `error` is empty on success."""

    query_id: int
    checksums: list[list[str]]
    error: str = ""


# General answers


class Done(_Message, frozen=True):
    count: int = 0


class Failure(_Message, frozen=True):
    """`code` is an ErrorCode; the text says what was wrong and what is allowed."""

    code: str
    text: str


Request = (
    Hello | RegisterWorker | RegisterScheduler | Unregister | Ping | Lookup | Hint | Release | EndSession
    | ResetEngine | Reserve | Commit | AbortBatch | Transferred | ChecksumResult
)  # fmt: skip
Reply = Welcome | Registered | Pong | Found | Reserved | Committed | Done | Failure | ChecksumQuery
