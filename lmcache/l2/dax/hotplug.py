"""Devices that come, go and change their size while the adapter works: the rules, and what is refused with which code.

One operation at a time. An operation that fails leaves the device in the state it was in.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn, Protocol

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, ConfigError, ReconfigureError
from lmcache.l2.dax.device import Device, DeviceState
from lmcache.l2.dax.devices import Devices, Found
from lmcache.l2.dax.mover import Moved, Mover
from lmcache.l2.dax.requests import AddRequest, RemoveRequest, ResizeRequest
from lmcache.l2.dax.slots import num_slots_of
from lmcache.l2.object_index import ObjectIndex

_PRESENT = {*DeviceState} - {DeviceState.CLOSED, DeviceState.FAILED, DeviceState.REMOVED}


class Objects(Protocol):
    """What of the adapter is needed here: to open devices, and to make the index agree with what was done to them."""

    index: ObjectIndex
    devices: Devices

    def open_device(self, index: int, path: str, size_bytes: int) -> tuple[Device, list[tuple[int, ObjectKey]]]: ...
    def take_up(self, found: Found) -> None: ...
    def find_in(self, device: Device, start: int) -> list[tuple[int, ObjectKey]]: ...
    def remove_hidden(self, hidden: Sequence[ObjectKey]) -> None: ...
    def discard(self, key: ObjectKey, reason: Exception) -> None: ...
    def count_capacity(self) -> None: ...
    def report_device(self, device: Device) -> dict[str, object]: ...


class Hotplug:
    """`slot_bytes` as configured. `patience_s`: how long an operation waits for the stores that were under way
    when it began, and for reads of what it took away."""

    def __init__(self, objects: Objects, is_enabled: bool, slot_bytes: int, patience_s: float) -> None:
        self._objects = objects
        self._devices = objects.devices
        self._mover = Mover(objects.devices, objects.discard)
        self._is_enabled = is_enabled
        self._slot_bytes = slot_bytes
        self._patience_s = patience_s
        self._one_at_a_time = threading.Lock()

    def run(self, operation: str, payload: Mapping[str, object]) -> dict[str, object]:
        """Raises ReconfigureError, BackendError."""
        if not self._is_enabled:
            raise ReconfigureError(403, "DAX hotplug is disabled")
        with self._one_at_a_time:
            if operation == "add":
                return self._add(AddRequest.parse(payload))
            if operation == "remove":
                return self._remove(RemoveRequest.parse(payload))
            return self._resize(ResizeRequest.parse(payload))

    # Add

    def _add(self, request: AddRequest) -> dict[str, object]:
        self._check_fits(request.size_bytes)
        present = [device for device in self._matches(request.device_path) if device.size_bytes == request.size_bytes]
        if present:
            return self._added(present[0])
        if self._matches(request.device_path):
            raise ReconfigureError(409, "device_path already active with a different size")
        try:
            device, found = self._objects.open_device(self._devices.next_index, request.device_path, request.size_bytes)
        except (BackendError, ConfigError) as error:
            raise ReconfigureError(400, f"failed to map DAX device: {error}") from error
        for failed in self._devices.all():
            if failed.path == request.device_path and failed.state is DeviceState.FAILED:
                self._devices.set_state(failed, DeviceState.REMOVED)
        placed = self._devices.add(device, found)
        self._objects.count_capacity()
        self._objects.take_up(placed)
        return self._added(device)

    def _added(self, device: Device) -> dict[str, object]:
        return {"status": "ok", "operation": "add", "device": self._objects.report_device(device)}

    # Remove

    def _remove(self, request: RemoveRequest) -> dict[str, object]:
        device = self._find(request.device_path)
        place = {"device_path": device.path, "index": device.index}
        if request.mode == "drain":
            self._devices.set_state(device, DeviceState.DRAINING)
            return {"status": "ok", "operation": "drain", **place, "state": str(DeviceState.DRAINING)}
        moved, num_deleted = Moved(), 0
        with self._changing(device, DeviceState.DRAINING):
            self._settle(device)
            self._refuse_if_in_use(device, request.force)
            num_used = device.slots.num_used
            if request.mode == "migrate":
                self._devices.set_state(device, DeviceState.MIGRATING)
                moved = self._mover.move(device, self._devices.keys_on(device))
            else:
                num_deleted = self._delete(device, self._devices.keys_on(device), request.force)
            self._devices.set_state(device, DeviceState.REMOVING)
            self._wait_until_unused(device, 0)
            self._devices.set_state(device, DeviceState.REMOVED)
        device.close()
        self._objects.count_capacity()
        return {
            "status": "ok", "operation": "remove", **place,
            "moved_keys": moved.num_keys, "moved_bytes": moved.num_bytes, "deleted_keys": num_deleted,
            "source_slots_freed": num_used, "state": str(DeviceState.REMOVED),
        }  # fmt: skip

    # Resize

    def _resize(self, request: ResizeRequest) -> dict[str, object]:
        self._check_fits(request.size_bytes)
        device = self._find(request.device_path)
        old_bytes = device.size_bytes
        if request.size_bytes > old_bytes:
            self._grow(device, request.size_bytes)
        elif request.size_bytes < old_bytes:
            self._shrink(device, request)
        self._objects.count_capacity()
        return {
            "status": "ok", "operation": "resize", "device_path": device.path, "index": device.index,
            "old_size_bytes": old_bytes, "new_size_bytes": device.size_bytes, "state": str(device.state),
        }  # fmt: skip

    def _grow(self, device: Device, size_bytes: int) -> None:
        """What lies in the slots that come to it from an earlier life is found again."""
        start, old_bytes = len(device.slots), device.size_bytes
        with self._changing(device, DeviceState.RESIZING) as before:
            self._remap(device, size_bytes)
            try:
                self._devices.resize_slots(device, num_slots_of(size_bytes, self._slot_bytes))
                found = self._objects.find_in(device, start)
            except BaseException:
                self._devices.resize_slots(device, start)
                device.resize_medium(old_bytes)
                raise
            placed = self._devices.add_found(device, found)
            self._devices.set_state(device, before)
        self._objects.take_up(placed)

    def _shrink(self, device: Device, request: ResizeRequest) -> None:
        limit = num_slots_of(request.size_bytes, self._slot_bytes)
        with self._changing(device, DeviceState.RESIZING) as before:
            self._settle(device)
            self._refuse_if_in_use(device, request.force)
            keys = self._devices.keys_on(device, limit)
            if request.mode == "migrate":
                self._mover.move(device, keys, own_below=limit)
            elif keys and not request.force:
                text = f"invalid DAX hotplug resize request: shrinking would delete {len(keys)} keys; evict needs force"
                raise ReconfigureError(409, text)
            else:
                self._delete(device, keys, force=True)
            self._wait_until_unused(device, limit)
            self._remap(device, request.size_bytes)
            self._devices.resize_slots(device, limit)
            self._devices.set_state(device, before)

    def _remap(self, device: Device, size_bytes: int) -> None:
        try:
            device.resize_medium(size_bytes)
        except (BackendError, ConfigError) as error:
            raise ReconfigureError(400, f"failed to remap DAX device: {error}") from error

    # Rules that they share

    def _check_fits(self, size_bytes: int) -> None:
        if not num_slots_of(size_bytes, self._slot_bytes):
            raise ReconfigureError(400, f"size_bytes does not fit one slot (slot_bytes is {self._slot_bytes})")

    def _matches(self, path: str) -> list[Device]:
        return [device for device in self._devices.all() if device.path == path and device.state in _PRESENT]

    def _find(self, path: str) -> Device:
        matches = self._matches(path)
        if not matches:
            raise ReconfigureError(404, "DAX device not found")
        if len(matches) > 1:
            details: dict[str, object] = {
                "device_path": path,
                "matches": [self._objects.report_device(device) for device in matches],
            }
            raise ReconfigureError(409, "several active DAX devices have this path", details)
        return matches[0]

    @contextmanager
    def _changing(self, device: Device, state: DeviceState) -> Iterator[DeviceState]:
        """In that state from now on, and back in the one before if this fails."""
        before = device.state
        self._devices.set_state(device, state)
        try:
            yield before
        except BaseException:
            self._devices.set_state(device, before)
            raise

    def _settle(self, device: Device) -> None:
        """No store that began before is still under way."""
        if not self._devices.wait_for(lambda: not device.num_writes, self._patience_s):
            self._block(device, "stores to this device are still under way")

    def _refuse_if_in_use(self, device: Device, force: bool) -> None:
        if not force and (device.slots.num_pinned or self._num_locked(device)):
            self._block(device, "locked keys or borrowed slots; force goes on without them")

    def _delete(self, device: Device, keys: Sequence[ObjectKey], force: bool) -> int:
        hidden, leased, _ = self._objects.index.begin_removal(keys, force)
        if leased:
            self._objects.index.restore(hidden)
            self._block(device, "keys were locked meanwhile")
        self._objects.remove_hidden(hidden)
        return len(hidden)

    def _wait_until_unused(self, device: Device, start: int) -> None:
        """Nothing lies in slots from `start` on, and nobody reads there any more."""
        if not self._devices.wait_for(lambda: not device.slots.num_used_from(start), self._patience_s):
            self._block(device, "slots are still being read")

    def _num_locked(self, device: Device) -> int:
        return self._devices.among(self._objects.index.leased_keys(), device)

    def _block(self, device: Device, reason: str) -> NoReturn:
        details: dict[str, object] = {
            "status": "blocked",
            "reason": reason,
            "locked_key_count": self._num_locked(device),
            "borrowed_slot_count": device.slots.num_pinned,
        }
        raise ReconfigureError(409, "", details)
