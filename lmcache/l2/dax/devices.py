"""All devices of one adapter, and where each key lies. Guards slots, pins, states and places by one condition.

A slot passes through these hands:

    free --reserve--> being written --put_in_place--> placed --take_away--> free
                           |
                           +--abandon_write--> free

What is pinned is not given to anybody else, even when it was given back meanwhile. No I/O
happens under the condition.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from lmcache.core.keys import ObjectKey
from lmcache.errors import IntegrityError
from lmcache.l2.dax.device import READABLE, Device, DeviceState


class Place(NamedTuple):
    device: Device
    slot: int


class Found(NamedTuple):
    """What lay in the slots of a device: places now, and slots whose keys lie elsewhere, which are the caller's."""

    placed: list[tuple[ObjectKey, Place]]
    twins: list[Place]


class Devices:
    """Thread-safe."""

    def __init__(self, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        self._changed = threading.Condition()
        self._devices: list[Device] = []
        self._places: dict[ObjectKey, Place] = {}
        # By thread. A store counts as a write until the index knows of its object, or that there is none.
        self._writing: dict[int, Place] = {}

    # Devices

    def all(self) -> list[Device]:
        with self._changed:
            return list(self._devices)

    @property
    def next_index(self) -> int:
        return len(self._devices)

    @property
    def capacity_bytes(self) -> int:
        with self._changed:
            return sum(len(device.slots) for device in self._devices if device.is_counted) * self._slot_bytes

    @property
    def used_bytes(self) -> int:
        with self._changed:
            return sum(device.slots.num_used for device in self._devices if device.is_counted) * self._slot_bytes

    def has_active(self) -> bool:
        with self._changed:
            return any(device.state is DeviceState.ACTIVE for device in self._devices)

    def add(self, device: Device, found: Iterable[tuple[int, ObjectKey]]) -> Found:
        """Put a device to use, with what lies in its slots."""
        with self._changed:
            answer = self._place(device, found)
            self._devices.append(device)
            return answer

    def add_found(self, device: Device, found: Iterable[tuple[int, ObjectKey]]) -> Found:
        """The same for slots that a device came to have later."""
        with self._changed:
            return self._place(device, found)

    def _place(self, device: Device, found: Iterable[tuple[int, ObjectKey]]) -> Found:
        answer = Found([], [])
        for slot, key in found:
            device.slots.use(slot)
            place = Place(device, slot)
            if self._places.setdefault(key, place) == place:
                answer.placed.append((key, place))
            else:
                answer.twins.append(place)
        return answer

    def set_state(self, device: Device, state: DeviceState) -> None:
        """A device that failed can only be removed."""
        with self._changed:
            if device.state is not DeviceState.FAILED or state is DeviceState.REMOVED:
                device.state = state
            self._changed.notify_all()

    def resize_slots(self, device: Device, num_slots: int) -> None:
        with self._changed:
            device.slots.resize(num_slots)

    def wait_for(self, fact: Callable[[], bool], timeout_s: float) -> bool:
        """`fact` is asked under the condition."""
        with self._changed:
            return self._changed.wait_for(fact, timeout_s)

    # Writing

    def reserve(self) -> Place | None:
        """A free slot for what this thread stores, on the emptiest active device."""
        with self._changed:
            place = self._take(self._active_but(None))
            if place is not None:
                self._writing[threading.get_ident()] = place
                place.device.num_writes += 1
            return place

    def put_in_place(self, key: ObjectKey, place: Place) -> Place | None:
        """What was written there can be read now. The place where the key lay until then is the caller's."""
        with self._changed:
            stale = self._places.get(key)
            self._places[key] = place
            return stale

    def abandon_write(self, place: Place) -> None:
        """What this thread reserved holds nothing."""
        with self._changed:
            place.device.slots.give_back(place.slot)
        self.end_write()

    def end_write(self) -> None:
        """This thread's store is over, if it got as far as to reserve a slot."""
        with self._changed:
            place = self._writing.pop(threading.get_ident(), None)
            if place is not None:
                place.device.num_writes -= 1
                self._changed.notify_all()

    def _active_but(self, source: Device | None) -> list[Device]:
        return [device for device in self._devices if device.state is DeviceState.ACTIVE and device is not source]

    def _take(self, candidates: Sequence[Device]) -> Place | None:
        for device in sorted(candidates, key=lambda device: device.slots.fill):
            slot = device.slots.take()
            if slot >= 0:
                return Place(device, slot)
        return None

    # Reading

    @contextmanager
    def pinned(self, key: ObjectKey) -> Iterator[Place | None]:
        """Where a key lies; its slot keeps what it has until the end."""
        with self._changed:
            place = self._places.get(key)
            if place is not None:
                place.device.slots.pin(place.slot)
        try:
            yield place
        finally:
            if place is not None:
                with self._changed:
                    place.device.slots.unpin(place.slot)
                    self._changed.notify_all()

    @contextmanager
    def reading(self, key: ObjectKey) -> Iterator[Place | None]:
        """`pinned`, counted as a read; None as well where the device cannot be read any more."""
        with self.pinned(key) as place:
            if place is None or place.device.state not in READABLE:
                yield None
                return
            with self._changed:
                place.device.num_reads += 1
            try:
                yield place
            finally:
                with self._changed:
                    place.device.num_reads -= 1

    def is_at(self, key: ObjectKey, place: Place) -> bool:
        with self._changed:
            return self._places.get(key) == place

    # Removing

    def take_away(self, key: ObjectKey, place: Place) -> bool:
        """The key lies there no more, and its slot is free. False: it had moved."""
        with self._changed:
            if self._places.get(key) != place:
                return False
            del self._places[key]
            self._give_back(place)
            return True

    def give_back(self, place: Place) -> None:
        """Free a slot that no key lies in."""
        with self._changed:
            self._give_back(place)

    def _give_back(self, place: Place) -> None:
        place.device.slots.give_back(place.slot)
        self._changed.notify_all()

    # Moving

    def keys_on(self, device: Device, start: int = 0) -> list[ObjectKey]:
        """What lies there in slots from `start` on, in their order."""
        with self._changed:
            found = [
                (place.slot, key)
                for key, place in self._places.items()
                if place.device is device and place.slot >= start
            ]
        return [key for _, key in sorted(found, key=lambda entry: entry[0])]

    def among(self, keys: Iterable[ObjectKey], device: Device) -> int:
        """How many of these keys lie on that device."""
        with self._changed:
            places = [self._places.get(key) for key in keys]
        return sum(place is not None and place.device is device for place in places)

    def has_other_active(self, source: Device) -> bool:
        with self._changed:
            return bool(self._active_but(source))

    def reserve_moves(self, num_objects: int, source: Device, own_below: int) -> list[Place] | None:
        """Slots to move so many objects to: the source's own below `own_below`, then other active
        devices'. None: there are too few, and none was taken."""
        with self._changed:
            others = self._active_but(source)
            taken: list[Place] = []
            while len(taken) < num_objects:
                slot = source.slots.take(own_below)
                place = Place(source, slot) if slot >= 0 else self._take(others)
                if place is None:
                    for unused in taken:
                        unused.device.slots.give_back(unused.slot)
                    return None
                taken.append(place)
            return taken

    def move(self, key: ObjectKey, old: Place, new: Place) -> bool:
        """The key lies in the new place now, and the old one belongs to the caller. False: it had gone."""
        with self._changed:
            if self._places.get(key) != old:
                return False
            self._places[key] = new
            return True

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every place is a used slot of its own."""
        with self._changed:
            if len(set(self._places.values())) != len(self._places):
                raise IntegrityError("two keys lie in one slot")
            for device in self._devices:
                device.slots.check_integrity()
                num_placed = sum(place.device is device for place in self._places.values())
                if device.is_counted and not self._writing and num_placed > device.slots.num_used:
                    raise IntegrityError(
                        f"{device.path} has {device.slots.num_used} slots in use for {num_placed} keys"
                    )
