"""What most adapters share: objects in an index, leases, capacity, eviction, deletion, listing, events.

An adapter derived from this implements `open`, `_write`, `_read`, `_read_whole`, `_remove` and `close`
on its backend, and `_probe` if others write to the same one. It is never asked for two things
at once on one key, except for reads.
"""

from __future__ import annotations

import abc
import base64
import binascii
import logging
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, BackendFullError, CorruptObjectError, ObjectMissingError, PageTokenError
from lmcache.eviction import make_policy
from lmcache.l2.base import AdapterContext, Deleted, KeyPage, L2Adapter, Loaded, Source, StoreStatus, Usage
from lmcache.l2.envelope import checksum, encode_header
from lmcache.l2.object_index import ObjectIndex

logger = logging.getLogger(__name__)

T = TypeVar("T")
_TOKEN_PREFIX = b"row:"
_REMOVE_BATCH = 1000
# A backend that is full refuses object after object, for one cause.
_TELL_FULL_AGAIN_S = 60.0


class IndexedL2Adapter(L2Adapter):
    """`header_align`: what the length of an object's header is a multiple of. Where the backend is
    shared, a key that is not in the index is asked for."""

    supports_listing = True
    supports_deletes = True
    header_align: ClassVar[int] = 8

    def __init__(self, context: AdapterContext, capacity_bytes: int) -> None:
        super().__init__(context)
        policy = make_policy(context.eviction.eviction_policy if context.eviction else "LRU")
        self.index = ObjectIndex(policy, capacity_bytes, context.lease_ttl_s, context.clock)
        self._policy_name = policy.name
        self._told_full_s = -math.inf

    # The backend

    @abc.abstractmethod
    def _write(self, key: ObjectKey, header: bytes, data: memoryview) -> int:
        """Put header and data in place, whole or not at all; bytes taken. Raises BackendError, BackendFullError."""

    @abc.abstractmethod
    def _read(self, key: ObjectKey, target: memoryview) -> Loaded:
        """Fill `target` with the payload and check it (`envelope.check_header`, `check_payload`)."""

    @abc.abstractmethod
    def _read_whole(self, key: ObjectKey) -> memoryview:
        """The checked payload of an object of unknown length (`envelope.payload_of`), in memory of its own."""

    def _verify(self, key: ObjectKey) -> None:
        """Read a stored object and check it. Raises as `_read` does."""
        self._read_whole(key)

    @abc.abstractmethod
    def _remove(self, keys: Sequence[ObjectKey]) -> None:
        """Remove objects; one that is absent is fine. Raises BackendError."""

    def _room_for(self, object_bytes: int) -> int | None:
        """What an object of that many bytes, header included, takes on the backend; None: it can never fit."""
        return object_bytes

    def _probe(self, keys: Sequence[ObjectKey]) -> list[int]:
        """Stored bytes of each key on a shared backend, -1 where it is absent. Raises BackendError."""
        return [-1] * len(keys)

    def _tell_full(self, error: BackendFullError) -> None:
        now_s = self.context.clock()
        if now_s - self._told_full_s >= _TELL_FULL_AGAIN_S:
            self._told_full_s = now_s
            logger.warning("%s: no room, objects are not stored: %s", self.class_name, error)

    # The contract

    def store(self, key: ObjectKey, source: Source) -> StoreStatus:
        # Room is counted with the header; its exact length does not depend on the checksum.
        header_bytes = len(encode_header(key, len(source.data), 0, source.layout, self.header_align))
        num_bytes = self._room_for(header_bytes + len(source.data))
        if num_bytes is None or (self.index.capacity_bytes and num_bytes > self.index.capacity_bytes):
            return StoreStatus.NO_ROOM
        if not self.index.begin_store(key, num_bytes):
            return StoreStatus.EXISTS
        try:
            status, stored_bytes = self._store_claimed(key, source)
        except BackendFullError as error:
            self._tell_full(error)
            status, stored_bytes = StoreStatus.NO_ROOM, 0
        except BaseException:
            self.index.abort(key)
            raise
        if status is not StoreStatus.STORED:
            self.index.abort(key)
            return status
        self.index.commit(key, stored_bytes)
        for listener in self._listeners:
            listener.on_l2_keys_stored([key], [stored_bytes])
        return status

    def _store_claimed(self, key: ObjectKey, source: Source) -> tuple[StoreStatus, int]:
        if not self._make_room():
            return StoreStatus.NO_ROOM, 0
        header = encode_header(key, len(source.data), checksum(source.data), source.layout, self.header_align)
        # The checksum is of the right bytes if they were intact after it was made. Should they be
        # taken back while they are written, every load will notice; better not to keep them at all.
        if not source.is_intact():
            return StoreStatus.GONE, 0
        stored_bytes = self._write(key, header, source.data)
        if not source.is_intact():
            self._remove([key])
            return StoreStatus.GONE, 0
        return StoreStatus.STORED, stored_bytes

    def _make_room(self) -> bool:
        while (missing := self.index.missing_bytes()) > 0:
            if not self.evict(missing, _REMOVE_BATCH)[0]:
                return False
        return True

    def lookup(self, keys: Sequence[ObjectKey]) -> list[bool]:
        if self.context.is_reader and self.is_shared:
            self._forget_gone([key for key in keys if self.index.contains(key)])
        found = self.index.lease(keys)
        if not self.is_shared or all(found):
            return found
        unknown = [position for position, is_held in enumerate(found) if not is_held]
        try:
            self._adopt([keys[position] for position in unknown])
        except BackendError:
            self.index.release([key for key, is_held in zip(keys, found, strict=True) if is_held])
            raise
        for position, is_held in zip(unknown, self.index.lease([keys[position] for position in unknown]), strict=True):
            found[position] = is_held
        return found

    def _forget_gone(self, keys: Sequence[ObjectKey]) -> None:
        """A reader evicts nothing, and may load nothing that would show: what it has seen may be gone."""
        for key, size in zip(keys, self._probe(keys) if keys else (), strict=True):
            if size < 0:
                self._forget(key)

    def _adopt(self, keys: Sequence[ObjectKey]) -> None:
        """Take up what others stored under these keys."""
        sizes: Sequence[int] = [-1] * len(keys)
        self.index.begin_probe(keys)
        try:
            sizes = self._probe(keys)
        finally:
            self.index.end_probe(keys, sizes)

    def release(self, keys: Sequence[ObjectKey]) -> None:
        self.index.release(keys)

    def load(self, key: ObjectKey, target: memoryview) -> Loaded:
        return self._checked(key, lambda: self._read(key, target))

    def load_whole(self, key: ObjectKey) -> memoryview:
        return self._checked(key, lambda: self._read_whole(key))

    def _checked(self, key: ObjectKey, read: Callable[[], T]) -> T:
        """What `read` finds; an object that turns out missing or bad is held no more."""
        try:
            found = read()
        except ObjectMissingError:
            self._forget(key)
            raise
        except CorruptObjectError as error:
            self.discard(key, error)
            raise
        for listener in self._listeners:
            listener.on_l2_keys_accessed([key])
        return found

    def might_hold(self, key: ObjectKey) -> bool:
        return self.is_shared or self.index.contains(key)

    def verify(self, key: ObjectKey) -> bool:
        if not self.index.contains(key):
            return True
        try:
            self._verify(key)
        except ObjectMissingError:
            self._forget(key)
        except CorruptObjectError as error:
            self.discard(key, error)
            return False
        return True

    def _forget(self, key: ObjectKey) -> None:
        """It is not there any more: somebody else removed it."""
        size = self.index.forget(key)
        if size >= 0:
            self._tell_deleted([key], [size])

    def discard(self, key: ObjectKey, reason: Exception) -> None:
        logger.warning("%s: removed an object: %s", self.class_name, reason)
        hidden, _, _ = self.index.begin_removal([key], force=True)
        if hidden:
            self._finish_removal(hidden)

    def delete(self, keys: Sequence[ObjectKey]) -> Deleted:
        keys = list(dict.fromkeys(keys))
        if self.is_shared:
            self._adopt([key for key in keys if not self.index.contains(key)])
        hidden, leased, num_absent = self.index.begin_removal(keys)
        self._finish_removal(hidden)
        return Deleted(hidden, leased, num_absent)

    def evict(self, num_bytes: int, num_objects_max: int, tenant: str | None = None) -> tuple[int, int]:
        hidden = [key for key, _ in self.index.begin_eviction(num_bytes, num_objects_max, tenant)]
        return len(hidden), self._finish_removal(hidden, is_evicted=True)

    def _finish_removal(self, hidden: Sequence[ObjectKey], is_evicted: bool = False) -> int:
        """Remove hidden objects from the backend; their bytes."""
        num_bytes = 0
        for start in range(0, len(hidden), _REMOVE_BATCH):
            batch = hidden[start : start + _REMOVE_BATCH]
            try:
                self._remove(batch)
            except BaseException:
                self.index.restore(hidden[start:])
                raise
            sizes = self.index.end_removal(batch)
            num_bytes += sum(sizes)
            if is_evicted:
                self._tell_evicted(batch)
            self._tell_deleted(batch, sizes)
        return num_bytes

    def _tell_evicted(self, keys: Sequence[ObjectKey]) -> None:
        for listener in self._listeners:
            listener.on_l2_keys_evicted(keys)

    def _tell_deleted(self, keys: Sequence[ObjectKey], sizes: Sequence[int]) -> None:
        for listener in self._listeners:
            listener.on_l2_keys_deleted(keys, sizes)

    def list_l2_keys(self, model_name: str | None, page_size: int, page_token: str | None) -> KeyPage:
        cursor = decode_row_token(page_token) if page_token else 0
        entries, following = self.index.page(cursor, page_size, model_name)
        return KeyPage(entries, encode_row_token(following) if following else None)

    def keys_after(self, cursor: int, num_keys_max: int) -> tuple[list[ObjectKey], int]:
        entries, following = self.index.page(cursor, num_keys_max, None)
        return [key for key, _ in entries], following

    def usage(self) -> Usage:
        used_bytes, by_salt = self.index.usage()
        return Usage(used_bytes, self.index.capacity_bytes, by_salt)

    def expire_leases(self) -> int:
        return self.index.expire_leases()

    @property
    def num_objects(self) -> int:
        return len(self.index)

    @property
    def eviction_policy(self) -> str | None:
        return self._policy_name

    def remove_all(self) -> None:
        """Every object of this adapter, leased or not: for a close that keeps nothing."""
        while keys := self.keys_after(0, _REMOVE_BATCH)[0]:
            self._finish_removal(self.index.begin_removal(keys, force=True)[0])


def encode_row_token(row: int) -> str:
    return base64.urlsafe_b64encode(_TOKEN_PREFIX + str(row).encode()).decode()


def decode_row_token(token: str) -> int:
    """Raises PageTokenError."""
    try:
        content = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError, ValueError):
        content = b""
    digits = content.removeprefix(_TOKEN_PREFIX)
    if digits == content or not digits.isdigit() or len(digits) > 12:
        raise PageTokenError("malformed page_token: pass the next_page_token of the page before, unchanged")
    return int(digits)
