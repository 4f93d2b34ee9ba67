"""Objects in fixed slots of memory devices or files, one object to a slot. What moves between devices stays held."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, BackendFullError, CorruptObjectError, ObjectMissingError
from lmcache.l2.base import AdapterContext, Loaded, Source, StoreStatus
from lmcache.l2.dax.config import DaxConfig
from lmcache.l2.dax.device import Device, DeviceState
from lmcache.l2.dax.devices import Devices, Found, Place
from lmcache.l2.dax.hotplug import Hotplug
from lmcache.l2.dax.medium import Medium, open_medium
from lmcache.l2.dax.slots import HEADER_ROOM_BYTES, stride_of
from lmcache.l2.digest_table import DIGEST_BYTES
from lmcache.l2.indexed import IndexedL2Adapter

logger = logging.getLogger(__name__)

T = TypeVar("T")
# Objects that one store may evict where the policy's choice lies on devices that take no objects.
_EVICTIONS_MAX = 64
_PATIENCE_S = 30.0
_GONE = {DeviceState.CLOSED, DeviceState.FAILED, DeviceState.REMOVED}


class DaxL2Adapter(IndexedL2Adapter):
    """`open_medium` reaches a device. `patience_s`: how long a reconfiguration waits for what is under way.
    A lease of the index is what operators see as a lock."""

    supported_operations = ("status", "add", "remove", "resize")
    header_align = HEADER_ROOM_BYTES

    def __init__(
        self,
        config: DaxConfig,
        context: AdapterContext,
        open_medium: Callable[[str, int], Medium] = open_medium,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        super().__init__(context, 0)
        self.num_threads = config.num_store_workers + config.num_lookup_workers + config.num_load_workers
        self.devices = Devices(config.slot_bytes)
        self._config = config
        self._open_medium = open_medium
        self._hotplug = Hotplug(self, config.hotplug_enabled, config.slot_bytes, patience_s)

    def open(self) -> None:
        opened: list[tuple[Device, list[tuple[int, ObjectKey]]]] = []
        try:
            for number, device in enumerate(self._config.device_settings()):
                opened.append(self.open_device(number, device.device_path, device.size_bytes))
        except BaseException:
            for opened_device, _ in opened:
                opened_device.close()
            raise
        for opened_device, found in opened:
            self.take_up(self.devices.add(opened_device, found))
        self.count_capacity()
        logger.info("%s holds %d objects on %d devices", self.class_name, self.num_objects, len(opened))

    # Storing

    def store(self, key: ObjectKey, source: Source) -> StoreStatus:
        # Without a device there is no capacity, which the index takes for boundless.
        if not self.devices.has_active() and not self.index.contains(key):
            return StoreStatus.NO_ROOM
        try:
            return super().store(key, source)
        finally:
            self.devices.end_write()

    def _room_for(self, object_bytes: int) -> int | None:
        slot_bytes = self._config.slot_bytes
        if object_bytes <= stride_of(slot_bytes):
            return slot_bytes
        logger.warning(
            "%s: an object of %d bytes is refused: raise slot_bytes (%d) to at least %d",
            self.class_name, object_bytes - HEADER_ROOM_BYTES, slot_bytes, object_bytes - HEADER_ROOM_BYTES,
        )  # fmt: skip
        return None

    def _write(self, key: ObjectKey, header: bytes, data: memoryview) -> int:
        place = self._reserve()
        try:
            place.device.put(place.slot, header, data)
        except BaseException:
            self.devices.abandon_write(place)
            raise
        stale = self.devices.put_in_place(key, place)
        if stale is not None:
            self._erase(stale)
            self.devices.give_back(stale)
        return self._config.slot_bytes

    def _reserve(self) -> Place:
        for _ in range(_EVICTIONS_MAX):
            place = self.devices.reserve()
            if place is None:
                if not self.devices.has_active() or not self.evict(1, 1)[0]:
                    break
            elif place.device.is_cut_short:
                self.devices.abandon_write(place)
                self._fail(place.device)
            else:
                return place
        raise BackendFullError("no slot is free on a device that takes objects")

    # Reading

    def _read(self, key: ObjectKey, target: memoryview) -> Loaded:
        self._at_its_place(key, lambda place: place.device.read(place.slot, key, target))
        return Loaded(len(target))

    def _read_whole(self, key: ObjectKey) -> memoryview:
        return self._at_its_place(key, lambda place: place.device.read_whole(place.slot, key)[1])

    def _at_its_place(self, key: ObjectKey, read: Callable[[Place], T]) -> T:
        """What `read` finds where the key lies; asked again where it was moved meanwhile."""
        while True:
            with self.devices.reading(key) as place:
                if place is None:
                    raise ObjectMissingError("it lies on no device that can be read")
                try:
                    return read(place)
                except (ObjectMissingError, CorruptObjectError):
                    if self.devices.is_at(key, place):
                        if place.device.is_cut_short:
                            self._fail(place.device)
                        raise

    # Removing

    def _remove(self, keys: Sequence[ObjectKey]) -> None:
        for key in keys:
            while not self._remove_from_its_place(key):
                pass  # it was moved meanwhile

    def _remove_from_its_place(self, key: ObjectKey) -> bool:
        with self.devices.pinned(key) as place:
            if place is None:
                return True
            if place.device.state not in _GONE:
                place.device.erase(place.slot)
            return self.devices.take_away(key, place)

    def _erase(self, place: Place) -> None:
        """Where it fails, whoever gets the slot next erases it first."""
        with contextlib.suppress(BackendError):
            place.device.erase(place.slot)

    def _forget(self, key: ObjectKey) -> None:
        """Out of the index and off its place: should somebody have stored it anew meanwhile, the two still agree."""
        hidden, _, _ = self.index.begin_removal([key], force=True)
        self.remove_hidden(hidden)

    def remove_hidden(self, hidden: Sequence[ObjectKey]) -> None:
        self._finish_removal(hidden)

    # Devices

    def open_device(self, index: int, path: str, size_bytes: int) -> tuple[Device, list[tuple[int, ObjectKey]]]:
        """A device and what lies in its slots. Raises BackendError, ConfigError."""
        device = Device(index, self._config.slot_bytes, self._open_medium(path, size_bytes))
        try:
            return device, self.find_in(device, 0)
        except BaseException:
            device.close()
            raise

    def find_in(self, device: Device, start: int) -> list[tuple[int, ObjectKey]]:
        return [(slot, key) for slot, key in device.scan(start) if len(key.chunk_hash) == DIGEST_BYTES]

    def take_up(self, found: Found) -> None:
        """Objects that were found in slots; one that is held already, or being stored, is erased there."""
        for key, place in found.placed:
            if self.devices.is_at(key, place) and self.index.adopt(key, self._config.slot_bytes):
                continue
            with self.devices.pinned(key) as current:
                if current == place:
                    self._erase(place)
                    self.devices.take_away(key, place)
        for place in found.twins:
            self._erase(place)
            self.devices.give_back(place)

    def _fail(self, device: Device) -> None:
        """Somebody cut its file short: what it held is lost. It can be added again."""
        logger.error("%s: %s has become shorter than it was; it is not used any more", self.class_name, device.path)
        self.devices.set_state(device, DeviceState.FAILED)
        device.unlock()
        self.count_capacity()
        lost, _, _ = self.index.begin_removal(self.devices.keys_on(device), force=True)
        self._finish_removal(lost)

    def count_capacity(self) -> None:
        self.index.capacity_bytes = self.devices.capacity_bytes

    def reconfigure(self, operation: str, payload: Mapping[str, object]) -> dict[str, object]:
        if operation not in ("add", "remove", "resize"):
            return super().reconfigure(operation, payload)
        return self._hotplug.run(operation, payload)

    # Telling

    def report_device(self, device: Device) -> dict[str, object]:
        return device.report(self.devices.among(self.index.leased_keys(), device))

    def report_reconfigurable(self) -> dict[str, object]:
        return {
            "hotplug_enabled": self._config.hotplug_enabled,
            "slot_bytes": self._config.slot_bytes,
            "total_capacity_bytes": self.devices.capacity_bytes,
            "total_used_bytes": self.devices.used_bytes,
            "devices": [self.report_device(device) for device in self.devices.all()],
        }

    def report_status(self) -> dict[str, object]:
        """`device_path`: the first device in use. Sizes and counts are sums over the devices that are in use."""
        devices = self.devices.all()
        used = [device for device in devices if device.is_counted]
        num_writes = sum(device.num_writes for device in used)
        num_reads = sum(device.num_reads for device in used)
        return {
            "is_healthy": all(device.state is not DeviceState.FAILED for device in devices),
            "type": "dax",
            "device_path": used[0].path if used else None,
            "max_dax_size_bytes": sum(device.size_bytes for device in used),
            "slot_bytes": self._config.slot_bytes,
            "live_slot_count": sum(device.slots.num_used for device in used),
            "locked_key_count": self.index.num_leased,
            "borrowed_slot_count": sum(device.slots.num_pinned for device in used),
            "inflight_store_tasks": num_writes,
            "inflight_lookup_tasks": 0,  # a lookup asks the index in memory, never a device
            "inflight_load_tasks": num_reads,
            "closing": any(device.state is DeviceState.CLOSED for device in devices),
            "supports_restart_recovery": True,
            "hotplug_enabled": self._config.hotplug_enabled,
            "devices": [self.report_device(device) for device in devices],
            "num_devices": len(devices),
        }

    def close(self) -> None:
        try:
            if not self.context.is_persistent:
                self.remove_all()
        except BackendError as error:
            logger.warning("%s: not everything could be removed: %s", self.class_name, error)
        for device in self.devices.all():
            if device.is_counted:
                self.devices.set_state(device, DeviceState.CLOSED)
            device.close()
