"""A walk through the objects of a bucket in the order of their names. Foreign names are passed over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import obstore

from lmcache.core.keys import ObjectKey
from lmcache.errors import CorruptObjectError, ObjectMissingError
from lmcache.l2.envelope import HEADER_BYTES_MAX, decode_header
from lmcache.l2.object_batch import ObjectBatch, Space
from lmcache.l2.object_names import LONG_NAMES, key_of_name, model_start, object_name
from lmcache.l2.s3.client import BucketStore, translated
from lmcache.l2.s3.location import Location

if TYPE_CHECKING:
    from obstore import ObjectMeta

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as the bucket lists it. `written_s`: seconds since 1970."""

    name: str
    key: ObjectKey
    num_bytes: int
    written_s: int


class BucketListing:
    """Stateless; raises what obstore raises, except where it asks for an object's header."""

    def __init__(self, store: BucketStore, location: Location, name_bytes_max: int) -> None:
        self._store = store
        self._location = location
        self._name_bytes_max = name_bytes_max

    def after(self, name: str, model_name: str | None = None) -> Iterator[Entry]:
        """Objects behind `name`, of one model or of all."""
        starts = [""] if model_name is None else sorted((LONG_NAMES, model_start(model_name)))
        for start in starts:
            for meta in self._metas(start, name):
                key = self._key(meta["path"])
                if key is not None and model_name in (None, key.model_name):
                    yield Entry(meta["path"], key, meta["size"], int(meta["last_modified"].timestamp()))

    def find_all(self) -> ObjectBatch:
        """Every object, the one written last as the one used last."""
        batch = ObjectBatch()
        for entry in self.after(""):
            key = entry.key
            space = Space(key.model_name, key.kv_rank, key.object_group_id, key.cache_salt)
            batch.add(space, key.chunk_hash, entry.num_bytes, entry.written_s)
        return batch

    def _metas(self, start: str, name: str) -> Iterator[ObjectMeta]:
        """Names that begin with `start`, behind `name`."""
        folder = start.rpartition("/")[0] or None
        offset = max(start, name) or None
        for batch in obstore.list(self._store, folder, offset=offset, chunk_size=_BATCH):
            for meta in batch:
                if not meta["path"].startswith(start):
                    return
                # A server that begins anywhere else must not send a walk in circles.
                if meta["path"] > name:
                    yield meta

    def _key(self, name: str) -> ObjectKey | None:
        if not name.startswith(LONG_NAMES):
            return key_of_name(name)
        try:
            with translated(self._location):
                # Not every server gives a part of an object when asked for one: the rest is not fetched.
                content = next(iter(obstore.get(self._store, name).stream(HEADER_BYTES_MAX)), b"")
            key = decode_header(content).key
        except (ObjectMissingError, CorruptObjectError):
            return None
        return key if object_name(key, self._name_bytes_max) == name else None
