"""Keys that somebody works on at a backend: being stored, being removed, or asked for. Not thread-safe."""

from __future__ import annotations

from collections.abc import Iterable

from lmcache.core.keys import ObjectKey
from lmcache.errors import IntegrityError


class KeyClaims:
    """A key is claimed by one store or one removal; any number may ask for it meanwhile."""

    def __init__(self) -> None:
        self._storing: dict[ObjectKey, int] = {}
        self._removing: dict[ObjectKey, int] = {}
        self.storing_bytes = 0
        self.removing_bytes = 0
        # Keys that the backend is being asked for, and those of them that left it meanwhile.
        self._probed: dict[ObjectKey, int] = {}
        self._left: set[ObjectKey] = set()

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._storing or key in self._removing

    @property
    def is_storing(self) -> bool:
        return bool(self._storing)

    def begin_store(self, key: ObjectKey, num_bytes: int) -> None:
        self._storing[key] = num_bytes
        self.storing_bytes += num_bytes

    def end_store(self, key: ObjectKey) -> None:
        self.storing_bytes -= self._storing.pop(key)

    def begin_removal(self, key: ObjectKey, num_bytes: int) -> None:
        self._removing[key] = num_bytes
        self.removing_bytes += num_bytes

    def end_removal(self, key: ObjectKey) -> int:
        """The size it was claimed with."""
        size = self._removing.pop(key)
        self.removing_bytes -= size
        return size

    def begin_probe(self, keys: Iterable[ObjectKey]) -> None:
        for key in keys:
            self._probed[key] = self._probed.get(key, 0) + 1

    def has_left(self, key: ObjectKey) -> bool:
        """Whether a key that is probed left the backend since."""
        return key in self._left

    def note_left(self, key: ObjectKey) -> None:
        if key in self._probed:
            self._left.add(key)

    def end_probe(self, keys: Iterable[ObjectKey]) -> None:
        for key in keys:
            self._probed[key] -= 1
            if not self._probed[key]:
                del self._probed[key]
                self._left.discard(key)

    def check_integrity(self) -> None:
        if self.removing_bytes != sum(self._removing.values()):
            raise IntegrityError("bytes being removed do not add up")
        if self.storing_bytes != sum(self._storing.values()):
            raise IntegrityError("bytes being stored do not add up")
