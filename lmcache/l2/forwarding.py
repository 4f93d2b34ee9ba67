"""An adapter around another one, which it is in every respect but those that a subclass changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmcache.core.keys import ObjectKey
from lmcache.l2.base import Deleted, KeyPage, L2Adapter, L2Listener, Loaded, Source, StoreStatus, Usage


class ForwardingL2Adapter(L2Adapter):
    """Name, events, eviction, listing, usage and reconfiguration are those of the adapter inside."""

    def __init__(self, inner: L2Adapter) -> None:
        super().__init__(inner.context)
        self.inner = inner
        self.type_name = inner.type_name
        self.supports_listing = inner.supports_listing
        self.supports_deletes = inner.supports_deletes
        self.supported_operations = inner.supported_operations
        self.num_threads = inner.num_threads
        self.is_shared = inner.is_shared

    @property
    def class_name(self) -> str:
        return self.inner.class_name

    @property
    def num_objects(self) -> int:
        return self.inner.num_objects

    @property
    def eviction_policy(self) -> str | None:
        return self.inner.eviction_policy

    def add_listener(self, listener: L2Listener) -> None:
        self.inner.add_listener(listener)

    def open(self) -> None:
        self.inner.open()

    def store(self, key: ObjectKey, source: Source) -> StoreStatus:
        return self.inner.store(key, source)

    def lookup(self, keys: Sequence[ObjectKey]) -> list[bool]:
        return self.inner.lookup(keys)

    def release(self, keys: Sequence[ObjectKey]) -> None:
        self.inner.release(keys)

    def load(self, key: ObjectKey, target: memoryview) -> Loaded:
        return self.inner.load(key, target)

    @property
    def is_lossy(self) -> bool:
        return self.inner.is_lossy

    def load_whole(self, key: ObjectKey) -> memoryview:
        return self.inner.load_whole(key)

    def delete(self, keys: Sequence[ObjectKey]) -> Deleted:
        return self.inner.delete(keys)

    def discard(self, key: ObjectKey, reason: Exception) -> None:
        self.inner.discard(key, reason)

    def evict(self, num_bytes: int, num_objects_max: int, tenant: str | None = None) -> tuple[int, int]:
        return self.inner.evict(num_bytes, num_objects_max, tenant)

    def might_hold(self, key: ObjectKey) -> bool:
        return self.inner.might_hold(key)

    def verify(self, key: ObjectKey) -> bool:
        return self.inner.verify(key)

    def keys_after(self, cursor: int, num_keys_max: int) -> tuple[list[ObjectKey], int]:
        return self.inner.keys_after(cursor, num_keys_max)

    def list_l2_keys(self, model_name: str | None, page_size: int, page_token: str | None) -> KeyPage:
        return self.inner.list_l2_keys(model_name, page_size, page_token)

    def usage(self) -> Usage:
        return self.inner.usage()

    def expire_leases(self) -> int:
        return self.inner.expire_leases()

    def tick(self) -> None:
        self.inner.tick()

    def report_status(self) -> dict[str, object]:
        return self.inner.report_status()

    def report_reconfigurable(self) -> dict[str, object]:
        return self.inner.report_reconfigurable()

    def reconfigure(self, operation: str, payload: Mapping[str, object]) -> dict[str, object]:
        return self.inner.reconfigure(operation, payload)

    def close(self) -> None:
        self.inner.close()
