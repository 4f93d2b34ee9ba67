"""Moves objects from slots that go to slots that stay. Whoever reads or deletes them meanwhile is not disturbed.

First every object is copied, then every key changes its place. If a copy fails, nothing has
changed; if the process ends, the scan at the next start finds one object twice, and keeps one.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, CorruptObjectError, ObjectMissingError, ReconfigureError
from lmcache.l2.dax.device import Device
from lmcache.l2.dax.devices import Devices, Place


@dataclass(frozen=True, slots=True)
class Moved:
    """`num_bytes`: payload."""

    num_keys: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Copy:
    key: ObjectKey
    old: Place
    new: Place
    num_bytes: int


class Mover:
    """One move at a time. `discard` removes an object that turned out damaged."""

    def __init__(self, devices: Devices, discard: Callable[[ObjectKey, Exception], None]) -> None:
        self._devices = devices
        self._discard = discard

    def move(self, source: Device, keys: Sequence[ObjectKey], own_below: int = 0) -> Moved:
        """Off `source`, or to its own slots below `own_below`. Raises ReconfigureError where there is
        too little room, BackendError."""
        if not keys:
            return Moved()
        places = self._devices.reserve_moves(len(keys), source, own_below)
        if places is None:
            what = "insufficient" if self._devices.has_other_active(source) else "no active"
            raise ReconfigureError(507, f"{what} destination DAX capacity")
        copies: list[_Copy] = []
        unfinished = deque(places)
        try:
            for key in keys:
                copy = self._copy(key, unfinished[0])
                place = unfinished.popleft()
                if copy is None:
                    self._devices.give_back(place)
                else:
                    copies.append(copy)
        except BaseException:
            for place in [*[copy.new for copy in copies], *unfinished]:
                self._undo(place)
            raise
        moved = [copy for copy in copies if self._switch(copy)]
        return Moved(len(moved), sum(copy.num_bytes for copy in moved))

    def _copy(self, key: ObjectKey, new: Place) -> _Copy | None:
        """None: the object is gone, or was damaged and is gone now."""
        with self._devices.pinned(key) as old:
            if old is None:
                return None
            try:
                header, payload = old.device.read_whole(old.slot, key)
                header_content = old.device.header_content(old.slot, header)
            except (ObjectMissingError, CorruptObjectError) as error:
                if self._devices.is_at(key, old):
                    self._discard(key, error)
                return None
            new.device.put(new.slot, header_content, payload)
            return _Copy(key, old, new, len(payload))

    def _switch(self, copy: _Copy) -> bool:
        if not self._devices.move(copy.key, copy.old, copy.new):
            self._undo(copy.new)
            return False
        self._undo(copy.old)
        return True

    def _undo(self, place: Place) -> None:
        """Free a slot that no key lies in. Whoever is given one that could not be erased erases it first."""
        with contextlib.suppress(BackendError):
            place.device.erase(place.slot)
        self._devices.give_back(place)
