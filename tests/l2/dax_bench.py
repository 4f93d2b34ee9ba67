"""An open DAX adapter with small slots on files of a folder, worked by its operations and looked at behind its back."""

from __future__ import annotations

import pathlib
from typing import Any

from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import GIB
from lmcache.errors import CorruptObjectError
from lmcache.l2.base import AdapterContext, EvictionConfig, Source, StoreStatus
from lmcache.l2.dax.adapter import DaxL2Adapter
from lmcache.l2.dax.config import DaxConfig
from lmcache.l2.dax.slots import stride_of
from lmcache.l2.envelope import decode_header
from lmcache.testing.l2_backend import LEASE_TTL_S, Clock, Recorder, make_data, make_key

SLOT_BYTES = 4096
STRIDE = stride_of(SLOT_BYTES)
FILE_SLOTS = 8
KEYS = [make_key(number) for number in range(40)]


class DaxBench:
    """Every file has room for `FILE_SLOTS` slots; `sizes` says how many of them each named device uses."""

    def __init__(
        self, folder: pathlib.Path, sizes: dict[str, int], hotplug_enabled: bool = True, policy: str = "LRU"
    ) -> None:
        self.folder = folder
        self.clock = Clock()
        self._hotplug_enabled = hotplug_enabled
        self._policy = policy
        self.open(sizes)

    def open(self, sizes: dict[str, int]) -> None:
        devices = [
            {"device_path": self.path(name), "max_dax_size_gb": slots * STRIDE / GIB} for name, slots in sizes.items()
        ]
        config = DaxConfig(SLOT_BYTES, devices=devices, hotplug_enabled=self._hotplug_enabled)
        context = AdapterContext("dax", EvictionConfig(self._policy), lease_ttl_s=LEASE_TTL_S, clock=self.clock)
        self.adapter = DaxL2Adapter(config, context, patience_s=0.05)
        self.events = Recorder()
        self.adapter.add_listener(self.events)
        self.adapter.open()

    def path(self, name: str) -> str:
        path = self.folder / name
        if not path.exists():
            path.write_bytes(bytes(FILE_SLOTS * STRIDE))
        return str(path)

    # Operations

    def add(self, name: str, slots: float) -> dict[str, Any]:
        return self.adapter.reconfigure("add", {"device_path": self.path(name), "size": int(slots * STRIDE)})

    def remove(self, name: str, **fields: object) -> dict[str, Any]:
        return self.adapter.reconfigure("remove", {"device_path": self.path(name), **fields})

    def resize(self, name: str, slots: float, **fields: object) -> dict[str, Any]:
        payload = {"device_path": self.path(name), "size": int(slots * STRIDE), **fields}
        return self.adapter.reconfigure("resize", payload)

    def report(self, name: str) -> dict[str, Any]:
        """The newest device of that name."""
        reports: Any = self.adapter.report_status()["devices"]
        return [report for report in reports if report["device_path"] == self.path(name)][-1]

    def state(self, name: str) -> str:
        return self.report(name)["state"]

    # Objects

    def store(self, *keys: ObjectKey) -> None:
        for key in keys:
            assert self.put(key) is StoreStatus.STORED

    def put(self, key: ObjectKey) -> StoreStatus:
        return self.adapter.store(key, Source(memoryview(data_of(key))))

    def load(self, key: ObjectKey) -> bytes:
        target = bytearray(SLOT_BYTES)
        self.adapter.load(key, memoryview(target))
        return bytes(target)

    def is_held(self, key: ObjectKey) -> bool:
        found = self.adapter.lookup([key])[0]
        if found:
            self.adapter.release([key])
        return found

    def held(self) -> set[ObjectKey]:
        return {key for key, _ in self.adapter.list_l2_keys(None, 1000, None).entries}

    def keys_on(self, name: str) -> list[ObjectKey]:
        device = self.adapter.devices.all()[self.report(name)["index"]]
        return self.adapter.devices.keys_on(device)

    def lies_on(self, name: str) -> list[ObjectKey]:
        """What the headers in the file say, in the order of slots, whether the adapter uses it or not."""
        content = pathlib.Path(self.path(name)).read_bytes()
        found = []
        for start in range(0, len(content) // STRIDE * STRIDE, STRIDE):
            try:
                found.append(decode_header(content[start : start + STRIDE]).key)
            except CorruptObjectError:
                continue
        return found

    def check(self) -> None:
        """Raise unless index, places and slots agree."""
        self.adapter.index.check_integrity()
        self.adapter.devices.check_integrity()
        used = sum(report["live_slot_count"] for report in self.adapter.report_status()["devices"])  # type: ignore[attr-defined]
        assert len(self.held()) == used == self.adapter.num_objects
        assert self.adapter.usage().total_bytes_used == used * SLOT_BYTES


def data_of(key: ObjectKey) -> bytes:
    return make_data(key.chunk_hash[0] * 256 + key.chunk_hash[1], SLOT_BYTES)
