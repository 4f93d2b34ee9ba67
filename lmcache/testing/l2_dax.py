"""The DAX adapter's slots on plain files, reached behind its back."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import GIB
from lmcache.errors import CorruptObjectError, ObjectMissingError
from lmcache.l2.base import AdapterContext
from lmcache.l2.dax.adapter import DaxL2Adapter
from lmcache.l2.dax.config import DaxConfig
from lmcache.l2.dax.device import ERASED, Device
from lmcache.l2.dax.medium import FileMedium, MappedMedium, Medium, open_medium
from lmcache.l2.dax.slots import stride_of
from lmcache.testing.l2_backend import L2Backend

SLOT_BYTES = 128 << 10


def make_file(path: pathlib.Path, num_slots: int, slot_bytes: int = SLOT_BYTES) -> str:
    """A file with room for so many slots and not one more."""
    with open(path, "ab") as file:
        file.truncate(num_slots * stride_of(slot_bytes))
    return str(path)


def dax_config(
    paths: list[str], num_slots: int, slot_bytes: int = SLOT_BYTES, hotplug_enabled: bool = True
) -> DaxConfig:
    size_gb = num_slots * stride_of(slot_bytes) / GIB
    devices = [{"device_path": path, "max_dax_size_gb": size_gb} for path in paths]
    return DaxConfig(slot_bytes, devices=devices, hotplug_enabled=hotplug_enabled)


def open_mapped(path: str, size_bytes: int) -> Medium:
    """A file mapped as a Device-DAX device would be."""
    opened = open_medium(path, size_bytes)
    mapped = MappedMedium(path, os.dup(opened._descriptor), size_bytes, os.path.getsize(path))
    os.close(opened._descriptor)
    return mapped


class DaxBackend(L2Backend):
    """`num_devices` files in a folder of its own under `parent`."""

    def __init__(
        self,
        num_devices: int = 2,
        is_mapped: bool = False,
        slot_bytes: int = SLOT_BYTES,
        parent: pathlib.Path | None = None,
    ) -> None:
        self._slot_bytes = slot_bytes
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lmcache-test-dax-", dir=parent))
        self._paths = [self.folder / f"device{number}" for number in range(num_devices)]
        self._opener = open_mapped if is_mapped else open_medium

    def make(self, context: AdapterContext, capacity_bytes: int) -> DaxL2Adapter:
        """A limited adapter has the first device alone, with what its predecessor left there."""
        num_slots = capacity_bytes // self._slot_bytes or 24
        paths = self._paths[:1] if capacity_bytes else self._paths
        for path in paths:
            make_file(path, max(num_slots, self._num_slots(path)), self._slot_bytes)
        return DaxL2Adapter(dax_config(list(map(str, paths)), num_slots, self._slot_bytes), context, self._opener)

    def _num_slots(self, path: pathlib.Path) -> int:
        return path.stat().st_size // stride_of(self._slot_bytes) if path.exists() else 0

    def settings(self, num_slots: int) -> dict[str, object]:
        """The fields of a server that has the first device alone, which is made so large."""
        path = make_file(self._paths[0], num_slots, self._slot_bytes)
        size_gb = num_slots * stride_of(self._slot_bytes) / GIB
        return {"device_path": path, "max_dax_size_gb": size_gb, "slot_bytes": self._slot_bytes}

    def _slots(self) -> Iterator[tuple[Device, int, ObjectKey | None]]:
        """Whatever is neither erased nor blank, with its key where the header checks."""
        for path in self._paths:
            if not path.exists():
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            device = Device(0, self._slot_bytes, _Unlocked(str(path), descriptor, path.stat().st_size))
            try:
                for slot in range(len(device.slots)):
                    start = os.pread(descriptor, len(ERASED), slot * stride_of(self._slot_bytes))
                    if start not in (ERASED, bytes(len(ERASED))):
                        yield device, slot, _key_in(device, slot)
            finally:
                os.close(descriptor)

    def content(self, key: ObjectKey) -> bytes | None:
        for device, slot, found in self._slots():
            if found == key:
                header, payload = device.header(slot), bytearray(device.header(slot).payload_bytes)
                device._medium.read(slot * stride_of(self._slot_bytes) + header.header_bytes, memoryview(payload))
                return device.header_content(slot, header) + bytes(payload)
        return None

    def replace(self, key: ObjectKey, content: bytes) -> None:
        self._overwrite(key, content.ljust(stride_of(self._slot_bytes), b"\0"))

    def remove(self, key: ObjectKey) -> None:
        self._overwrite(key, ERASED)

    def _overwrite(self, key: ObjectKey, content: bytes) -> None:
        for device, slot, found in self._slots():
            if found == key:
                device._medium.write(slot * stride_of(self._slot_bytes), content)

    def num_objects(self) -> int:
        return sum(1 for _ in self._slots())

    def stored_bytes(self, key: ObjectKey) -> int:
        return self._slot_bytes if self.content(key) is not None else 0

    def close(self) -> None:
        shutil.rmtree(self.folder)


class _Unlocked(FileMedium):
    """A second way to a file that an adapter has open."""


def _key_in(device: Device, slot: int) -> ObjectKey | None:
    try:
        return device.header(slot).key
    except (CorruptObjectError, ObjectMissingError):
        return None
