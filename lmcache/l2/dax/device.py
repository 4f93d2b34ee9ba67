"""One device as slots of objects. Not thread-safe in its counts: `devices` guards those; transfers may overlap.

A slot holds an object's header and payload without a gap. The payload is written first and
the header last, and what header was there is erased before both. So whatever a crash leaves,
a header that checks stands before the payload it speaks of.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from lmcache.core.keys import ObjectKey
from lmcache.errors import CorruptObjectError, ObjectMissingError
from lmcache.l2.dax.medium import Medium
from lmcache.l2.dax.slots import HEADER_ROOM_BYTES, Slots, num_slots_of, stride_of
from lmcache.l2.envelope import Header, check_header, check_payload, decode_header, header_bytes_of

ERASED = b"LMCFREE\0"


class DeviceState(StrEnum):
    ACTIVE = "active"
    DRAINING = "draining"
    MIGRATING = "migrating"
    RESIZING = "resizing"
    REMOVING = "removing"
    CLOSED = "closed"
    FAILED = "failed"
    REMOVED = "removed"


READABLE = {DeviceState.ACTIVE, DeviceState.DRAINING, DeviceState.MIGRATING, DeviceState.RESIZING}
COUNTED = READABLE | {DeviceState.REMOVING}


class Device:
    """`index`: its place in the list of all devices ever used, for life."""

    def __init__(self, index: int, slot_bytes: int, medium: Medium) -> None:
        self.index = index
        self.path = medium.path
        self.slot_bytes = slot_bytes
        self.state = DeviceState.ACTIVE
        self.slots = Slots(num_slots_of(medium.size_bytes, slot_bytes))
        self.num_reads = 0
        self.num_writes = 0
        self._medium = medium
        self._stride = stride_of(slot_bytes)

    @property
    def size_bytes(self) -> int:
        return self._medium.size_bytes

    @property
    def is_counted(self) -> bool:
        return self.state in COUNTED

    @property
    def is_cut_short(self) -> bool:
        return self._medium.is_cut_short

    # Objects

    def put(self, slot: int, header: bytes, payload: memoryview) -> None:
        """Raises BackendError."""
        start = slot * self._stride
        self._medium.write(start, ERASED)
        self._medium.write(start + len(header), payload)
        self._medium.write(start, header)

    def erase(self, slot: int) -> None:
        """Nobody will find what is in this slot. Raises BackendError."""
        if not self.is_cut_short:
            self._medium.write(slot * self._stride, ERASED)

    def header(self, slot: int) -> Header:
        """Raises ObjectMissingError, CorruptObjectError, BackendError."""
        start = slot * self._stride
        content = self._read(start, HEADER_ROOM_BYTES)
        if content[: len(ERASED)] == ERASED:
            raise ObjectMissingError("its slot was erased")
        header_bytes = header_bytes_of(content)
        if header_bytes > self._stride:
            raise CorruptObjectError("its header is longer than a slot")
        if header_bytes > len(content):
            content = self._read(start, header_bytes)
        header = decode_header(content)
        if header.header_bytes + header.payload_bytes > self._stride:
            raise CorruptObjectError("it is longer than a slot")
        return header

    def header_content(self, slot: int, header: Header) -> bytes:
        """The header as it lies there. Raises BackendError, CorruptObjectError."""
        return bytes(self._read(slot * self._stride, header.header_bytes))

    def read(self, slot: int, key: ObjectKey, target: memoryview) -> None:
        """The payload, checked. Raises ObjectMissingError, CorruptObjectError, BackendError."""
        header = self.header(slot)
        check_header(header, key, len(target))
        self._fill(slot * self._stride + header.header_bytes, target)
        check_payload(header, target)

    def read_whole(self, slot: int, key: ObjectKey) -> tuple[Header, memoryview]:
        """The same for a payload of unknown length, in memory of its own."""
        header = self.header(slot)
        check_header(header, key, header.payload_bytes)
        payload = memoryview(bytearray(header.payload_bytes))
        self._fill(slot * self._stride + header.header_bytes, payload)
        check_payload(header, payload)
        return header, payload

    def _read(self, offset: int, num_bytes: int) -> memoryview:
        content = memoryview(bytearray(num_bytes))
        self._fill(offset, content)
        return content

    def _fill(self, offset: int, target: memoryview) -> None:
        if self._medium.read(offset, target) < len(target):
            raise CorruptObjectError(f"{self.path} ends inside it")

    def scan(self, start: int = 0) -> Iterator[tuple[int, ObjectKey]]:
        """Objects in the slots from `start` on, by their headers alone. Raises BackendError."""
        for slot in range(start, len(self.slots)):
            try:
                yield slot, self.header(slot).key
            except (ObjectMissingError, CorruptObjectError):
                continue

    # Life

    def resize_medium(self, size_bytes: int) -> None:
        """The slots are the caller's to adapt. Raises BackendError, ConfigError; then nothing has changed."""
        self._medium.resize(size_bytes)

    def unlock(self) -> None:
        self._medium.unlock()

    def close(self) -> None:
        self._medium.close()

    def report(self, locked_key_count: int) -> dict[str, object]:
        return {
            "is_healthy": self.state is not DeviceState.FAILED,
            "device_path": self.path,
            "max_dax_size_bytes": self.size_bytes,
            "slot_bytes": self.slot_bytes,
            "max_slots": len(self.slots),
            "live_slot_count": self.slots.num_used,
            "locked_key_count": locked_key_count,
            "borrowed_slot_count": self.slots.num_pinned,
            "active_read_count": self.num_reads,
            "active_write_count": self.num_writes,
            "closing": self.state is DeviceState.REMOVING,
            "supports_restart_recovery": True,
            "index": self.index,
            "device_id": f"dax-{self.index}",
            "state": str(self.state),
            "inflight_store_tasks": self.num_writes,
            "inflight_lookup_tasks": 0,  # a lookup asks the index in memory, never a device
            "inflight_load_tasks": self.num_reads,
        }
