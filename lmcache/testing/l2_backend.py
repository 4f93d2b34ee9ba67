"""What the L2 contract suite needs to know of one kind of backend, and the bench on which it works an adapter."""

from __future__ import annotations

import abc
import hashlib
import pathlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from lmcache.core.keys import ObjectKey
from lmcache.l2.base import AdapterContext, EvictionConfig, L2Adapter, Source, StoreStatus
from lmcache.l2.forwarding import ForwardingL2Adapter
from lmcache.l2.indexed import IndexedL2Adapter

LEASE_TTL_S = 60.0


class L2Backend(abc.ABC):
    """One backend, and a way to it that does not lead through the adapter. Its adapters all see the same objects.

    `content` and `replace` deal in an object as it lies there: header and payload, without any
    padding behind them. A backend of fixed slots fills what `replace` leaves over with zeros.
    """

    survives_restart: bool = True
    """Whether an adapter opened later finds the objects of one before it."""
    respects_capacity: bool = True
    """Whether the adapter makes room by evicting."""
    listing_asks_the_backend: bool = False
    """Whether a listing leaves out at once what vanished from the backend; else it is what the adapter believes."""
    payload_sizes: Sequence[int] = (1, 4096, 100_003)
    layout: str = ""

    @abc.abstractmethod
    def make(self, context: AdapterContext, capacity_bytes: int) -> L2Adapter:
        """An adapter that is not open yet. Capacity 0: ample room."""

    @abc.abstractmethod
    def content(self, key: ObjectKey) -> bytes | None:
        """What lies under a key; None: nothing."""

    @abc.abstractmethod
    def replace(self, key: ObjectKey, content: bytes) -> None:
        """Put something else under a key that is held."""

    @abc.abstractmethod
    def remove(self, key: ObjectKey) -> None:
        """Take an object away, as another server or an operator would."""

    @abc.abstractmethod
    def num_objects(self) -> int:
        """Objects that lie there, with leftovers of any kind."""

    def stored_bytes(self, key: ObjectKey) -> int:
        """What an object costs there; 0: it is absent."""
        return len(self.content(key) or b"")

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Remove everything."""


class FilesBackend(L2Backend):
    """Objects that lie somewhere as files, one each."""

    @abc.abstractmethod
    def path(self, key: ObjectKey) -> pathlib.Path:
        """Where an object lies, whether it is there or not."""

    def content(self, key: ObjectKey) -> bytes | None:
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError:
            return None

    def replace(self, key: ObjectKey, content: bytes) -> None:
        self.path(key).write_bytes(content)

    def remove(self, key: ObjectKey) -> None:
        self.path(key).unlink()


class Clock:
    """Monotonic seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Recorder:
    """A listener that keeps all it was told."""

    def __init__(self) -> None:
        self.stored: list[tuple[ObjectKey, int]] = []
        self.accessed: list[ObjectKey] = []
        self.evicted: list[ObjectKey] = []
        self.deleted: list[tuple[ObjectKey, int]] = []

    def on_l2_keys_stored(self, keys: Sequence[ObjectKey], sizes: Sequence[int]) -> None:
        self.stored += zip(keys, sizes, strict=True)

    def on_l2_keys_accessed(self, keys: Sequence[ObjectKey]) -> None:
        self.accessed += keys

    def on_l2_keys_evicted(self, keys: Sequence[ObjectKey]) -> None:
        self.evicted += keys

    def on_l2_keys_deleted(self, keys: Sequence[ObjectKey], sizes: Sequence[int]) -> None:
        self.deleted += zip(keys, sizes, strict=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a load gave."""

    data: bytes
    is_lossy: bool


class Bench:
    """An open adapter on a backend, with the clock and the listener it was given."""

    def __init__(self, backend: L2Backend) -> None:
        self.backend = backend
        self.clock = Clock()
        self.events = Recorder()
        self.adapter: L2Adapter = self.open()

    def open(
        self,
        capacity_bytes: int = 0,
        policy: str = "LRU",
        is_persistent: bool = True,
    ) -> L2Adapter:
        """A new adapter, on the bench and open; the one before should be closed."""
        self.adapter = self.make(capacity_bytes, policy, is_persistent)
        self.events = Recorder()
        self.adapter.add_listener(self.events)
        self.adapter.open()
        return self.adapter

    def make(
        self, capacity_bytes: int = 0, policy: str = "LRU", is_persistent: bool = True, boot_id: int = 1
    ) -> L2Adapter:
        context = AdapterContext(
            "contract", EvictionConfig(policy), is_persistent, boot_id, LEASE_TTL_S, self.clock
        )  # fmt: skip
        return self.backend.make(context, capacity_bytes)

    def reopen(self, capacity_bytes: int = 0, policy: str = "LRU", is_persistent: bool = True) -> L2Adapter:
        self.adapter.close()
        return self.open(capacity_bytes, policy, is_persistent)

    def store(self, key: ObjectKey, data: bytes) -> StoreStatus:
        return self.adapter.store(key, Source(memoryview(data), self.backend.layout))

    def load(self, key: ObjectKey, num_bytes: int) -> Answer:
        target = bytearray(num_bytes)
        loaded = self.adapter.load(key, memoryview(target))
        assert loaded.num_bytes == num_bytes
        return Answer(bytes(target), loaded.is_lossy)

    def is_held(self, key: ObjectKey) -> bool:
        """Looked up, and the lease given back."""
        found = self.adapter.lookup([key])[0]
        if found:
            self.adapter.release([key])
        return found

    def object_bytes(self, key: ObjectKey, data: bytes) -> int:
        """What storing this costs here. The object is deleted again."""
        assert self.store(key, data) is StoreStatus.STORED
        num_bytes = self.adapter.usage().total_bytes_used
        assert self.adapter.delete([key]).deleted == [key]
        return num_bytes

    def listed(self, model_name: str | None = None, page_size: int = 500) -> list[tuple[ObjectKey, int]]:
        """All pages, one after another."""
        found: list[tuple[ObjectKey, int]] = []
        token: str | None = None
        while True:
            page = self.adapter.list_l2_keys(model_name, page_size, token)
            assert len(page.entries) <= page_size
            found += page.entries
            token = page.next_page_token
            if token is None:
                return found

    def check(self) -> None:
        """Raise unless the adapter's books agree with each other."""
        adapter = self.adapter
        while isinstance(adapter, ForwardingL2Adapter):
            adapter = adapter.inner
        if isinstance(adapter, IndexedL2Adapter):
            adapter.index.check_integrity()


def make_key(number: int, model_name: str = "meta/llama", cache_salt: str = "", kv_rank: int = 0x01000100) -> ObjectKey:
    return ObjectKey(hashlib.sha256(str(number).encode()).digest(), model_name, kv_rank, 0, cache_salt)


def make_data(number: int, num_bytes: int = 4096) -> bytes:
    """The same bytes for the same number; they do not compress."""
    return random.Random(number).randbytes(num_bytes)
