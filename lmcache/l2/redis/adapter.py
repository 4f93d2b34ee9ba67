"""Objects as strings of a Redis server: an index rebuilt by SCAN, and checked at every lookup.

Others may remove what is here: another of our servers, an operator, the server itself when an
object's time is up or its memory is full.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from redis.exceptions import ReadOnlyError

from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import MIB
from lmcache.errors import BackendError, BackendFullError, LMCacheError, ObjectMissingError
from lmcache.l2.base import AdapterContext, KeyPage, Loaded
from lmcache.l2.envelope import payload_of
from lmcache.l2.indexed import IndexedL2Adapter
from lmcache.l2.redis.client import (
    Client,
    check_writable,
    drop_idle_connections,
    is_other_type,
    make_client,
    translated,
)
from lmcache.l2.redis.config import RedisConfig
from lmcache.l2.redis.names import Names
from lmcache.l2.redis.packing import Parts

logger = logging.getLogger(__name__)

# Redis takes no longer string from a client, unless it was told so.
_VALUE_BYTES_MAX = 512 * MIB
_SCAN_COUNT = 5000
_PIPELINE_COMMANDS_MAX = 1000
# Of the objects held, how many more a lookup checks: some, and two for every one that may follow
# it into the index. So what vanished unseen stays less than what is held.
_SWEEP_KEYS_MIN = 8
_SWEEP_KEYS_PER_UNKNOWN = 2


class RedisL2Adapter(IndexedL2Adapter):
    """An adapter that is not persistent keeps to what it stored itself, and removes it at a clean close."""

    def __init__(self, config: RedisConfig, context: AdapterContext) -> None:
        super().__init__(context, config.capacity_bytes)
        self.is_shared = context.is_persistent
        self.num_threads = config.num_workers
        self._config = config
        self._names = Names(config.prefix)
        self._client: Client | None = None
        self._mutex = threading.Lock()  # of the two below
        self._num_failures = 0
        self._sweep_cursor = 0

    # Life

    def open(self) -> None:
        self._disconnect()  # of a try before
        with self._translated():
            self._client = make_client(self._config)
        with self._calling() as client:
            check_writable(client, self._names.never_held, self._config.location)
        if self.is_shared:
            self._find_new()
        logger.info("%s holds %d objects in %s", self.class_name, self.num_objects, self._config.location)

    def close(self) -> None:
        if self._client is not None and not self.context.is_persistent:
            try:
                self.remove_all()
            except LMCacheError as error:
                logger.warning(
                    "%s: objects of this server stay in %s: %s", self.class_name, self._config.location, error
                )
        self._disconnect()

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _find_new(self) -> None:
        """Take up what lies on the server and is not known here. SCAN may name an object twice."""
        with self._calling() as client:
            names = iter(client.scan_iter(match=self._names.pattern, count=_SCAN_COUNT))
            while batch := list(itertools.islice(names, _SCAN_COUNT)):
                found = [key for key in map(self._names.key, batch) if key is not None]
                self._adopt([key for key in found if not self.index.contains(key)])

    # The contract

    def lookup(self, keys: Sequence[ObjectKey]) -> list[bool]:
        """The server is asked for all keys at once, with some more of those held, to notice what vanished."""
        found = self.index.lease(keys)
        held = [key for key, is_held in zip(keys, found, strict=True) if is_held]
        unknown = [key for key, is_held in zip(keys, found, strict=True) if not is_held]
        checked = held + self._next_to_check(_SWEEP_KEYS_MIN + _SWEEP_KEYS_PER_UNKNOWN * len(unknown))
        try:
            vanished = self._check(checked, unknown)
        except BackendError:
            self.index.release(held)
            raise
        late = iter(self.index.lease(unknown))
        return [key not in vanished if is_held else next(late) for key, is_held in zip(keys, found, strict=True)]

    def _check(self, held: Sequence[ObjectKey], unknown: Sequence[ObjectKey]) -> set[ObjectKey]:
        """Which of the objects held are not on the server any more: forgotten. Unknown ones that are there are
        taken up."""
        keys = [*held, *unknown]
        sizes, was_held = [-1] * len(keys), set[ObjectKey]()
        self.index.begin_probe(keys)
        try:
            sizes = self._probe(keys)
            was_held = set(held)
            if not self.is_shared:
                sizes[len(held) :] = [-1] * len(unknown)
        finally:
            vanished = self.index.end_probe(keys, sizes, was_held)
        for key, size in vanished:
            self._tell_deleted([key], [size])
        return {key for key, _ in vanished}

    def _next_to_check(self, num_keys_max: int) -> list[ObjectKey]:
        """Keys held, in rounds."""
        with self._mutex:
            keys, self._sweep_cursor = self.keys_after(self._sweep_cursor, num_keys_max)
            return keys

    def list_l2_keys(self, model_name: str | None, page_size: int, page_token: str | None) -> KeyPage:
        """The first page is preceded by a look for what others stored."""
        if self.is_shared and not page_token:
            self._find_new()
        return super().list_l2_keys(model_name, page_size, page_token)

    # The backend

    def _write(self, key: ObjectKey, header: bytes, data: memoryview) -> int:
        value = Parts((header, data))
        if len(value) > _VALUE_BYTES_MAX:
            raise BackendFullError(
                f"an object of {len(value)} bytes is longer than a value of Redis may be ({_VALUE_BYTES_MAX}): "
                "use a smaller --chunk-size"
            )
        with self._calling() as client:
            # `cast`: our packer takes what redis-py does not know.
            client.set(self._names.name(key), cast(Any, value), px=self._config.ttl_ms or None)
        return len(value)

    def _read(self, key: ObjectKey, target: memoryview) -> Loaded:
        payload = payload_of(self._content(key), key, len(target))
        if payload:
            # With the interpreter free, unlike an assignment to the view.
            np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(payload, np.uint8))
        return Loaded(len(payload))

    def _read_whole(self, key: ObjectKey) -> memoryview:
        return payload_of(self._content(key), key)

    def _content(self, key: ObjectKey) -> memoryview:
        with self._calling() as client:
            content = cast(bytes | None, client.get(self._names.name(key)))
        if content is None:
            raise ObjectMissingError(f"not in {self._config.location}")
        return memoryview(content)

    def _remove(self, keys: Sequence[ObjectKey]) -> None:
        self._ask_each("UNLINK", keys)

    def _probe(self, keys: Sequence[ObjectKey]) -> list[int]:
        # An empty string is no object either.
        return [size or -1 for size in self._ask_each("STRLEN", keys)]

    def _ask_each(self, command: str, keys: Sequence[ObjectKey]) -> list[int]:
        """The number with which the server answers for each key; 0 for what is no string."""
        answers: list[int] = []
        with self._calling() as client:
            for start in range(0, len(keys), _PIPELINE_COMMANDS_MAX):
                pipeline = client.pipeline(transaction=False)
                for key in keys[start : start + _PIPELINE_COMMANDS_MAX]:
                    pipeline.execute_command(command, self._names.name(key))
                answers += _numbers(pipeline.execute(raise_on_error=False))
        return answers

    @contextmanager
    def _calling(self) -> Iterator[Client]:
        """Around calls of the library: its errors in our words, and those of the backend counted."""
        client = self._client
        if client is None:
            raise BackendError(f"{self._config.location} is not connected")
        try:
            with self._translated():
                yield client
        except BackendError as error:
            if isinstance(error.__cause__, ReadOnlyError):
                # Another server may be the master by now, under the same name.
                drop_idle_connections(client)
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with translated(self._config.location):
                yield
        except BackendError:
            with self._mutex:
                self._num_failures += 1
            raise

    # Telling

    def report_status(self) -> dict[str, object]:
        config = self._config
        return {
            **super().report_status(),
            "location": config.location,
            "is_cluster": bool(config.nodes),
            "db": config.db,
            "prefix": config.prefix,
            "ttl_seconds": config.ttl_seconds,
            "connection_failures": self._num_failures,
            "stored_object_count": self.num_objects,
            "locked_key_count": self.index.num_leased,
            "current_size_bytes": self.usage().total_bytes_used,
            "max_capacity_bytes": self.index.capacity_bytes,
        }


def _numbers(answers: Iterable[object]) -> Iterator[int]:
    for answer in answers:
        if isinstance(answer, int):
            yield answer
        elif isinstance(answer, Exception) and is_other_type(answer):
            yield 0
        elif isinstance(answer, Exception):
            raise answer
        else:
            raise BackendError(f"an answer that is no number: {answer!r}")
