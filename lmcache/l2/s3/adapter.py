"""Objects in a bucket that several servers may share: an index made from a listing, and a question where it may lag."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import obstore

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, CorruptObjectError, LMCacheError, ObjectMissingError
from lmcache.l2.base import AdapterContext, KeyPage, Loaded
from lmcache.l2.envelope import check_header, check_payload, decode_header, payload_of
from lmcache.l2.indexed import IndexedL2Adapter
from lmcache.l2.object_names import NAME_BYTES_MAX, object_name
from lmcache.l2.page_tokens import decode_name_token, encode_name_token
from lmcache.l2.s3.client import make_store, translated
from lmcache.l2.s3.config import S3Config
from lmcache.l2.s3.listing import BucketListing

logger = logging.getLogger(__name__)

# Small enough that copying a piece hides behind the arrival of the next, and holds any header.
_STREAM_BYTES = 1024 * 1024
_PROBE_THREADS_MAX = 32


class S3L2Adapter(IndexedL2Adapter):
    """What others stored under a key is found by asking for that key; what others removed is noticed
    by the load that misses it. An adapter that is not persistent keeps to what it stored itself,
    and removes it at a clean close."""

    def __init__(self, config: S3Config, context: AdapterContext) -> None:
        super().__init__(context, config.capacity_bytes)
        self.is_shared = context.is_persistent
        self.num_threads = config.s3_num_io_threads
        self._config = config
        self._location = config.location
        self._store = make_store(config)
        prefix_bytes = len(self._location.prefix.encode())
        self._name_bytes_max = NAME_BYTES_MAX - (prefix_bytes + 1 if prefix_bytes else 0)
        self._listing = BucketListing(self._store, self._location, self._name_bytes_max)
        # A directory bucket of S3 Express lists in no order, so there is no place to go on from.
        self._lists_in_order = not config.s3_enable_s3express
        self._probes = ThreadPoolExecutor(min(_PROBE_THREADS_MAX, self.num_threads), "lmcache-s3-probe")
        self._mutex = threading.Lock()
        self._num_failures = 0
        self._is_open = False

    # Life

    def open(self) -> None:
        with self._calling():
            if self.context.is_persistent:
                self.index.adopt_all(self._listing.find_all())
            else:
                next(self._listing.after(""), None)  # the bucket can be reached
        self._is_open = True
        logger.info("%s holds %d objects in %s", self.class_name, self.num_objects, self._location)

    def close(self) -> None:
        if self._is_open and not self.context.is_persistent:
            try:
                self.remove_all()
            except LMCacheError as error:
                logger.warning("%s: objects of this server stay in %s: %s", self.class_name, self._location, error)
        self._is_open = False
        self._probes.shutdown()

    # The backend

    def _write(self, key: ObjectKey, header: bytes, data: memoryview) -> int:
        num_bytes, part_bytes = len(header) + len(data), self._config.part_bytes
        try:
            with self._calling():
                # Both are sent from where they lie. Should a request that failed still read the pool's
                # memory when it has other bytes, whoever loads what became of it will notice.
                obstore.put(
                    self._store, self._name(key), [header, data],
                    use_multipart=num_bytes > part_bytes, chunk_size=part_bytes,
                )  # fmt: skip
        except ObjectMissingError as error:
            raise BackendError(f"{self._location} takes no objects: does the bucket exist?") from error
        return num_bytes

    def _read(self, key: ObjectKey, target: memoryview) -> Loaded:
        with self._calling():
            pieces = iter(obstore.get(self._store, self._name(key)).stream(_STREAM_BYTES))
            # The stream's pieces are at least this large, but for the last one: the header is in the first.
            first = memoryview(next(pieces, b""))
            header = decode_header(first)
            check_header(header, key, len(target))
            end = 0
            for piece in itertools.chain((first[header.header_bytes :],), map(memoryview, pieces)):
                start, end = end, end + len(piece)
                if end > len(target):
                    raise CorruptObjectError("it is longer than its header says")
                target[start:end] = piece
        if end < len(target):
            raise CorruptObjectError(f"it has {end} of {len(target)} bytes")
        check_payload(header, target)
        return Loaded(len(target))

    def _read_whole(self, key: ObjectKey) -> memoryview:
        with self._calling():
            content = obstore.get(self._store, self._name(key)).bytes()
        return payload_of(memoryview(content), key)

    def _remove(self, keys: Sequence[ObjectKey]) -> None:
        names = [self._name(key) for key in keys]
        try:
            with self._calling():
                obstore.delete(self._store, names)
        except ObjectMissingError:
            # Google and Azure complain about the first that is absent, and leave the rest.
            for name in names:
                self._remove_one(name)

    def _remove_one(self, name: str) -> None:
        try:
            with self._calling():
                obstore.delete(self._store, name)
        except ObjectMissingError:
            pass  # that is what was wanted

    def _probe(self, keys: Sequence[ObjectKey]) -> list[int]:
        if len(keys) == 1:
            return [self._stored_bytes(keys[0])]
        return list(self._probes.map(self._stored_bytes, keys))

    def _stored_bytes(self, key: ObjectKey) -> int:
        try:
            with self._calling():
                return obstore.head(self._store, self._name(key))["size"]
        except ObjectMissingError:
            return -1

    # Telling

    def list_l2_keys(self, model_name: str | None, page_size: int, page_token: str | None) -> KeyPage:
        """What lies in the bucket now, whoever stored it."""
        if not self._lists_in_order:
            return super().list_l2_keys(model_name, page_size, page_token)
        after = decode_name_token(page_token) if page_token else ""
        with self._calling():
            found = list(itertools.islice(self._listing.after(after, model_name), page_size + 1))
        page = found[:page_size]
        entries = [(entry.key, entry.num_bytes) for entry in page]
        return KeyPage(entries, encode_name_token(page[-1].name) if len(found) > page_size else None)

    def report_status(self) -> dict[str, object]:
        location = self._location
        return {
            **super().report_status(),
            "service": str(location.service),
            "endpoint": location.endpoint_url or self._config.s3_endpoint,
            "region": self._config.region,
            "bucket": location.bucket,
            "prefix": location.prefix,
            "connection_failures": self._num_failures,
            "connection_disabled": False,
            "stored_object_count": self.num_objects,
            "locked_key_count": self.index.num_leased,
            "current_size_bytes": self.usage().total_bytes_used,
            "max_capacity_bytes": self.index.capacity_bytes,
        }

    def _name(self, key: ObjectKey) -> str:
        return object_name(key, self._name_bytes_max)

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Around calls of the library: its errors in our words, and those of the backend counted."""
        try:
            with translated(self._location):
                yield
        except BackendError:
            with self._mutex:
                self._num_failures += 1
            raise
