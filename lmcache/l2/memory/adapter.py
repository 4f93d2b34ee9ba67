"""The least an adapter must do: objects in a dict, under the same headers as on a disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import parse_size
from lmcache.errors import ObjectMissingError, ReconfigureError
from lmcache.l2.base import AdapterContext, Loaded
from lmcache.l2.envelope import payload_of
from lmcache.l2.indexed import IndexedL2Adapter
from lmcache.l2.memory.config import MemoryConfig

_EVICT_BATCH = 1000


class MockL2Adapter(IndexedL2Adapter):
    """`sleep` paces the transfers where a bandwidth is configured."""

    supported_operations = ("status", "resize")

    def __init__(
        self, config: MemoryConfig, context: AdapterContext, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        super().__init__(context, config.capacity_bytes)
        self._bandwidth = config.mock_bandwidth_gb
        self._sleep = sleep
        self._mutex = threading.Lock()
        self._objects: dict[ObjectKey, bytes] = {}

    def open(self) -> None:
        """Nothing to find: memory ends with the process."""

    def _write(self, key: ObjectKey, header: bytes, data: memoryview) -> int:
        self._pace(len(data))
        content = header + bytes(data)
        with self._mutex:
            self._objects[key] = content
        return len(content)

    def _read(self, key: ObjectKey, target: memoryview) -> Loaded:
        content = self._content(key)
        self._pace(len(target))
        payload = payload_of(content, key, len(target))
        target[:] = payload
        return Loaded(len(payload))

    def _read_whole(self, key: ObjectKey) -> memoryview:
        content = self._content(key)
        self._pace(len(content))
        return payload_of(content, key)

    def _remove(self, keys: Sequence[ObjectKey]) -> None:
        with self._mutex:
            for key in keys:
                self._objects.pop(key, None)

    def _content(self, key: ObjectKey) -> memoryview:
        with self._mutex:
            content = self._objects.get(key)
        if content is None:
            raise ObjectMissingError("not in memory")
        return memoryview(content)

    def _pace(self, num_bytes: int) -> None:
        if self._bandwidth is not None:
            self._sleep(num_bytes / (self._bandwidth * 1e9))

    def reconfigure(self, operation: str, payload: Mapping[str, object]) -> dict[str, object]:
        """`resize` with a `size`; a smaller one evicts what no longer fits."""
        if operation != "resize":
            return super().reconfigure(operation, payload)
        unknown = sorted(set(payload) - {"size"})
        if unknown:
            raise ReconfigureError(400, f"resize takes `size` alone (got {', '.join(unknown)} as well)")
        try:
            size_bytes = parse_size(payload.get("size"))
        except ValueError as error:
            raise ReconfigureError(400, str(error)) from error
        old_bytes, self.index.capacity_bytes = self.index.capacity_bytes, size_bytes
        num_evicted = 0
        while (missing := self.index.missing_bytes()) > 0:
            count = self.evict(missing, _EVICT_BATCH)[0]
            num_evicted += count
            if not count:
                break  # the rest is leased: it goes when the next object needs room
        return {
            "status": "ok", "operation": "resize", "old_size_bytes": old_bytes, "new_size_bytes": size_bytes,
            "deleted_keys": num_evicted,
        }  # fmt: skip

    def report_reconfigurable(self) -> dict[str, object]:
        return self._report_sizes()

    def report_status(self) -> dict[str, object]:
        return {**super().report_status(), **self._report_sizes()}

    def _report_sizes(self) -> dict[str, object]:
        return {
            "stored_object_count": self.num_objects,
            "locked_key_count": self.index.num_leased,
            "current_size_bytes": self.usage().total_bytes_used,
            "max_capacity_bytes": self.index.capacity_bytes,
        }

    def close(self) -> None:
        with self._mutex:
            self._objects.clear()
