"""Readers of any shared backend: they load nothing, so nothing but a lookup tells them what others removed."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache.core.keys import ObjectKey
from lmcache.l2.base import AdapterContext, Loaded, Source
from lmcache.l2.indexed import IndexedL2Adapter

KEYS = [ObjectKey(bytes([number]) * 32, "m", 0x01000100) for number in range(3)]


class SharedAdapter(IndexedL2Adapter):
    """Objects in a dict that several adapters have."""

    is_shared = True

    def __init__(self, backend: dict[ObjectKey, bytes], is_reader: bool = False) -> None:
        super().__init__(AdapterContext("shared", is_reader=is_reader), 0)
        self._backend = backend

    def open(self) -> None:
        """It is."""

    def close(self) -> None:
        """Nothing is open."""

    def _write(self, key: ObjectKey, header: bytes, data: memoryview) -> int:
        self._backend[key] = bytes(data)
        return len(data)

    def _read(self, key: ObjectKey, target: memoryview) -> Loaded:
        target[:] = self._backend[key]
        return Loaded(len(target))

    def _read_whole(self, key: ObjectKey) -> memoryview:
        return memoryview(self._backend[key])

    def _remove(self, keys: Sequence[ObjectKey]) -> None:
        for key in keys:
            self._backend.pop(key, None)

    def _probe(self, keys: Sequence[ObjectKey]) -> list[int]:
        return [len(self._backend[key]) if key in self._backend else -1 for key in keys]


def test_what_others_removed_is_a_miss() -> None:
    backend: dict[ObjectKey, bytes] = {}
    writer, reader = SharedAdapter(backend), SharedAdapter(backend, is_reader=True)
    for key in KEYS[:2]:
        writer.store(key, Source(memoryview(b"x" * 100)))
    assert reader.lookup(KEYS) == [True, True, False]
    reader.release(KEYS[:2])
    writer.delete(KEYS[:1])
    assert reader.lookup(KEYS) == [False, True, False]
    reader.release(KEYS[1:2])
    writer.store(KEYS[0], Source(memoryview(b"y" * 100)))
    assert reader.lookup(KEYS) == [True, True, False]
