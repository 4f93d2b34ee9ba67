"""The contract of an L2 adapter: objects by key on one storage backend. Knows nothing of L1, requests or sockets.

Primitives
    store      an object becomes findable, whole or not at all
    lookup     which keys are held; each one found is leased, so that it survives until it is loaded
    release    give a lease back (it also ends by itself)
    load       an object's bytes into a buffer, verified; a doubt is an error, never bytes
    delete     by key, skips what is leased
    evict      by the adapter's policy, skips what is leased
    list       pages of keys

All calls block and may be made from any thread; `storage.tier.Tier` gives every adapter its
threads, bounded queues and circuit breaker. An adapter translates its library's errors into
`BackendError`, `ObjectMissingError`, `CorruptObjectError`, `BackendFullError`.

Most adapters derive from `l2.indexed.IndexedL2Adapter` and implement four calls of it.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, ListingUnsupportedError, ReconfigureError


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes to store. They may lie in memory that others can take back: `is_intact` tells whether
    they were still what they were meant to be, and is asked after they were read.

    `layout` names how the bytes are laid out, for whoever looks at a stored object.
    """

    data: memoryview
    layout: str = ""
    is_intact: Callable[[], bool] = _always


class StoreStatus(StrEnum):
    STORED = "stored"
    EXISTS = "exists"  # held already, or being stored by another thread
    NO_ROOM = "no_room"
    GONE = "gone"  # the source was taken back while it was read


@dataclass(frozen=True, slots=True)
class Loaded:
    """`is_lossy`: the bytes only resemble those that were stored."""

    num_bytes: int
    is_lossy: bool = False


@dataclass(frozen=True, slots=True)
class Deleted:
    """What became of the keys of a delete: `leased` ones were left alone."""

    deleted: list[ObjectKey] = field(default_factory=list)
    leased: list[ObjectKey] = field(default_factory=list)
    num_absent: int = 0


@dataclass(frozen=True, slots=True)
class KeyPage:
    """`next_page_token` is opaque; None: that was the last page."""

    entries: list[tuple[ObjectKey, int]]
    next_page_token: str | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Stored bytes, headers included. Capacity 0: unknown or unlimited."""

    total_bytes_used: int = 0
    total_capacity_bytes: int = 0
    bytes_by_cache_salt: Mapping[str, int] = field(default_factory=dict)

    @property
    def usage_fraction(self) -> float:
        return self.total_bytes_used / self.total_capacity_bytes if self.total_capacity_bytes else -1.0


class L2Listener(Protocol):
    """Told of facts, outside of all locks, by the thread that made them. Must be quick and not raise."""

    def on_l2_keys_stored(self, keys: Sequence[ObjectKey], sizes: Sequence[int]) -> None: ...
    def on_l2_keys_accessed(self, keys: Sequence[ObjectKey]) -> None: ...
    def on_l2_keys_evicted(self, keys: Sequence[ObjectKey]) -> None:
        """The policy chose these; the event that they are deleted follows."""

    def on_l2_keys_deleted(self, keys: Sequence[ObjectKey], sizes: Sequence[int]) -> None: ...


@dataclass(frozen=True, slots=True)
class EvictionConfig:
    """When and what an adapter evicts. Objects that make room for a new one go whatever the watermark."""

    eviction_policy: str = "LRU"
    trigger_watermark: float = 0.8
    eviction_ratio: float = 0.2


@dataclass(frozen=True, slots=True)
class AdapterContext:
    """What the server gives every adapter it makes.

    `type_name` is the configured type. `eviction` None: no eviction block was configured, so
    only a declared capacity makes the adapter evict. `boot_id` tells servers apart that share
    a backend. `is_persistent` False: a clean close removes what was stored. `is_reader`: what others
    keep at the backend is looked up and loaded, and removed only on request: nothing is made, evicted, swept or
    repaired, nor removed at a close.
    """

    type_name: str
    eviction: EvictionConfig | None = None
    is_persistent: bool = True
    boot_id: int = 0
    lease_ttl_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    is_reader: bool = False


class L2Adapter(abc.ABC):
    """One backend instance. Thread-safe. `num_threads`: how many threads may usefully work on it at once.
    `is_shared`: other servers write to and remove from the same backend."""

    supports_listing: bool = False
    supports_deletes: bool = False
    supported_operations: tuple[str, ...] = ()
    num_threads: int = 4
    is_shared: bool = False

    def __init__(self, context: AdapterContext) -> None:
        self.context = context
        self.type_name = context.type_name
        self._listeners: list[L2Listener] = []

    @property
    def class_name(self) -> str:
        """The name operators see and select by; a wrapper answers with that of what it wraps."""
        return type(self).__name__

    @property
    def is_reconfigurable(self) -> bool:
        return bool(self.supported_operations)

    def add_listener(self, listener: L2Listener) -> None:
        """Before `open`."""
        self._listeners.append(listener)

    @abc.abstractmethod
    def open(self) -> None:
        """Reach the backend and find its objects again; may take seconds. Raises BackendError, ConfigError."""

    @abc.abstractmethod
    def store(self, key: ObjectKey, source: Source) -> StoreStatus:
        """Raises BackendError."""

    @abc.abstractmethod
    def lookup(self, keys: Sequence[ObjectKey]) -> list[bool]:
        """Which are held; those are leased once more each. Raises BackendError (then nothing is leased)."""

    @abc.abstractmethod
    def release(self, keys: Sequence[ObjectKey]) -> None:
        """One lease less on each; keys without one are ignored. Quick: may be called from any thread."""

    @abc.abstractmethod
    def load(self, key: ObjectKey, target: memoryview) -> Loaded:
        """Fill `target`, which has the object's length. What was written there is garbage if this raises
        BackendError, ObjectMissingError or CorruptObjectError."""

    @property
    def is_lossy(self) -> bool:
        """Whether bytes that come from here may only resemble those that were stored."""
        return False

    def load_whole(self, key: ObjectKey) -> memoryview:
        """The same for an object of unknown length, in memory of its own. A serde needs it."""
        raise BackendError(f"{self.class_name} loads only into memory of a known length")

    def delete(self, keys: Sequence[ObjectKey]) -> Deleted:
        """Nothing, where an adapter cannot."""
        return Deleted(num_absent=len(keys))

    def discard(self, key: ObjectKey, reason: Exception) -> None:
        """Remove an object that nobody can use, leased or not; quietly, if it is absent."""
        self.delete([key])

    def evict(self, num_bytes: int, num_objects_max: int, tenant: str | None = None) -> tuple[int, int]:
        """Remove objects in the policy's order until that many bytes are free; objects and bytes removed."""
        return 0, 0

    def might_hold(self, key: ObjectKey) -> bool:
        """False only where it is certain, without asking the backend, that the key is not held. Never blocks."""
        return True

    def verify(self, key: ObjectKey) -> bool:
        """Whether what is stored is whole; an object that is not is removed. True where it is absent."""
        return True

    def keys_after(self, cursor: int, num_keys_max: int) -> tuple[list[ObjectKey], int]:
        """Some of the keys held, in a stable order, and the cursor for the next; 0 starts over."""
        return [], 0

    def list_l2_keys(self, model_name: str | None, page_size: int, page_token: str | None) -> KeyPage:
        """Raises PageTokenError for a token this adapter never gave out, BackendError."""
        raise ListingUnsupportedError(f"{self.class_name} does not implement list_l2_keys")

    @abc.abstractmethod
    def usage(self) -> Usage: ...

    def expire_leases(self) -> int:
        """End leases whose time is up; how many. Called every second or so."""
        return 0

    def tick(self) -> None:  # noqa: B027 - most have nothing to do
        """Housekeeping on the backend, every second or so, from one thread; should be quick. Raises BackendError."""

    @property
    def num_objects(self) -> int:
        """Objects known here; -1 where that is not counted."""
        return -1

    @property
    def eviction_policy(self) -> str | None:
        """The policy in force; None: this adapter never evicts."""
        return None

    def report_status(self) -> dict[str, object]:
        """`is_healthy`, `type`, and what an operator of this backend wants to see."""
        return {"is_healthy": True, "type": self.class_name}

    def report_reconfigurable(self) -> dict[str, object]:
        """The backend's own part of GET /reconfigure/<backend>/status."""
        return {}

    def reconfigure(self, operation: str, payload: Mapping[str, object]) -> dict[str, object]:
        """Raises ReconfigureError."""
        raise ReconfigureError(400, f"unsupported {self.type_name} reconfigure operation: {operation}")

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the backend; nobody calls afterwards. Idempotent."""
