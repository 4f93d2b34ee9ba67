"""The memory adapter's objects, reached behind its back."""

from __future__ import annotations

from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import GIB
from lmcache.l2.base import AdapterContext, L2Adapter
from lmcache.l2.memory.adapter import MockL2Adapter
from lmcache.l2.memory.config import MemoryConfig
from lmcache.testing.l2_backend import L2Backend


class MemoryBackend(L2Backend):
    survives_restart = False

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, bytes] = {}

    def make(self, context: AdapterContext, capacity_bytes: int) -> L2Adapter:
        adapter = MockL2Adapter(MemoryConfig((capacity_bytes or GIB) / GIB), context)
        self._objects = adapter._objects
        return adapter

    def content(self, key: ObjectKey) -> bytes | None:
        return self._objects.get(key)

    def replace(self, key: ObjectKey, content: bytes) -> None:
        self._objects[key] = content

    def remove(self, key: ObjectKey) -> None:
        del self._objects[key]

    def num_objects(self) -> int:
        return len(self._objects)
