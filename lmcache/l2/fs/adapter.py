"""The file system adapter: objects as files, an index of their names, one evictor among the servers of a folder."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError
from lmcache.l2.base import AdapterContext, Loaded, Source, StoreStatus
from lmcache.l2.envelope import encode_header
from lmcache.l2.fs.config import FSConfig
from lmcache.l2.fs.files import ALIGN, ObjectFiles
from lmcache.l2.fs.folder import CacheFolder
from lmcache.l2.fs.scan import Scanner
from lmcache.l2.indexed import IndexedL2Adapter

logger = logging.getLogger(__name__)

_SWEEP_INTERVAL_S = 60.0
# Files looked at in one go of housekeeping: enough to follow busy neighbours, and over in some 30 ms. A server
# that is alone only has to notice what people remove by hand: one shard at a time will do.
_RESCAN_FILES = 20_000
_RESCAN_FILES_ALONE = 1
_TRIM_OBJECTS = 1000
# Servers that may not evict store only where there is room: the evictor keeps some for them.
_SHARED_FILL = 0.95


class FSL2Adapter(IndexedL2Adapter):
    """Other servers may use the same folder at the same time. What they store is found when it is asked for
    or at the next rescan; what they remove is a miss. Only the evictor's usage is exact."""

    header_align: ClassVar[int] = ALIGN
    is_shared = True

    def __init__(self, config: FSConfig, context: AdapterContext, wall_clock: Callable[[], float] = time.time) -> None:
        """Makes the folder if it is missing, and none for a reader. Raises ConfigError."""
        super().__init__(context, config.capacity_bytes)
        self._is_reader = context.is_reader
        self.num_threads = config.num_workers
        self._config = config
        self.folder = CacheFolder(config.base_path, config.relative_tmp_dir, context.boot_id, context.is_reader)
        self.files = ObjectFiles(config.use_odirect, config.read_ahead_size, wall_clock)
        self._scanner = Scanner(
            self.folder, self.files, self.index, self._adopt, self._forget, removes_damaged=not context.is_reader
        )
        # Held for a whole round of housekeeping, and while opening and closing: one after the other.
        self._housekeeping = threading.Lock()
        self._is_open = False
        self._trouble: str | None = None
        self._num_other_servers = 0
        self._swept_s = context.clock()

    def open(self) -> None:
        with self._housekeeping:
            try:
                self.folder.enter()
                self.folder.sweep()
                self.index.adopt_all(self._scanner.find_all())
            except BaseException:
                self.folder.leave()
                raise
            self._is_open = True

    # The backend

    def store(self, key: ObjectKey, source: Source) -> StoreStatus:
        if self._is_reader:
            return StoreStatus.NO_ROOM
        if not self.index.contains(key):
            expected = len(encode_header(key, len(source.data), 0, source.layout, ALIGN)) + len(source.data)
            self._adopt_whole(key, expected)
        return super().store(key, source)

    def _adopt_whole(self, key: ObjectKey, expected_bytes: int) -> None:
        """Take up what another server stored under this key; one of another length is torn, and gets replaced."""
        sizes = [-1]
        self.index.begin_probe([key])
        try:
            sizes = [size if size == expected_bytes else -1 for size in self._probe([key])]
        finally:
            self.index.end_probe([key], sizes)

    def _write(self, key: ObjectKey, header: bytes, data: memoryview) -> int:
        return self.files.write(self.folder.temporary_path(), self.folder.object_path(key), header, data)

    def _read(self, key: ObjectKey, target: memoryview) -> Loaded:
        self.files.read(self.folder.object_path(key), key, target)
        return Loaded(len(target))

    def _read_whole(self, key: ObjectKey) -> memoryview:
        return self.files.read_whole(self.folder.object_path(key), key)

    def _verify(self, key: ObjectKey) -> None:
        self.files.verify(self.folder.object_path(key), key)

    def _remove(self, keys: Sequence[ObjectKey]) -> None:
        for key in keys:
            try:
                os.unlink(self.folder.object_path(key))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                pass  # gone already; a folder of that name is none of ours
            except OSError as error:
                raise BackendError(f"cannot remove an object: {error.strerror}") from error

    def _probe(self, keys: Sequence[ObjectKey]) -> list[int]:
        return [self._size_of(key) for key in keys]

    def _size_of(self, key: ObjectKey) -> int:
        try:
            status = os.stat(self.folder.object_path(key), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return -1
        except OSError as error:
            raise BackendError(f"cannot look for an object: {error.strerror}") from error
        return status.st_size if stat.S_ISREG(status.st_mode) else -1

    def discard(self, key: ObjectKey, reason: Exception) -> None:
        if self._is_reader:  # what is bad is removed by those who write there
            self._forget(key)
        else:
            super().discard(key, reason)

    # Among other servers

    def evict(self, num_bytes: int, num_objects_max: int, tenant: str | None = None) -> tuple[int, int]:
        if not self.folder.is_evictor:
            return 0, 0
        return super().evict(num_bytes, num_objects_max, tenant)

    def tick(self) -> None:
        """See what other servers did, remove what dead ones left, keep room for live ones."""
        with self._housekeeping:
            if not self._is_open:
                return
            try:
                self._return_if_lost()
                self.folder.try_become_evictor()
                self._num_other_servers = self.folder.num_other_servers()
                is_alone = not self._num_other_servers and not self._is_reader
                self._scanner.rescan(_RESCAN_FILES_ALONE if is_alone else _RESCAN_FILES)
                if self.context.clock() - self._swept_s >= _SWEEP_INTERVAL_S:
                    self._swept_s = self.context.clock()
                    self.folder.sweep()
                self._trim()
            except BackendError as error:
                self._trouble = str(error)
                raise
            self._trouble = None

    def _return_if_lost(self) -> None:
        """Begin anew in a folder that was removed or emptied, once it is there again."""
        if self.folder.is_in_place():
            return
        self.folder.leave()
        self._scanner.forget_state()
        self.folder.enter()
        logger.warning("%s was emptied or removed; it is in use again", self.folder.base_path)

    def _trim(self) -> None:
        share = _SHARED_FILL if self._num_other_servers else 1.0
        excess_bytes = self.usage().total_bytes_used - int(share * self.index.capacity_bytes)
        if self.index.capacity_bytes and excess_bytes > 0:
            self.evict(excess_bytes, _TRIM_OBJECTS)

    def report_status(self) -> dict[str, object]:
        return {
            **super().report_status(),
            "is_healthy": self._trouble is None,
            "trouble": self._trouble,
            "base_path": self.folder.base_path,
            "relative_tmp_dir": self._config.relative_tmp_dir,
            "use_odirect": self.files.is_direct,
            "read_ahead_size": self._config.read_ahead_size,
            "num_workers": self.num_threads,
            "is_evictor": self.folder.is_evictor,
            "other_server_count": self._num_other_servers,
            "stored_object_count": self.num_objects,
            "locked_key_count": self.index.num_leased,
            "current_size_bytes": self.usage().total_bytes_used,
            "max_capacity_bytes": self.index.capacity_bytes,
        }

    def close(self) -> None:
        with self._housekeeping:
            if not self._is_open:
                return
            self._is_open = False
            try:
                # What others may still use stays.
                is_last = not self._is_reader and not self.folder.num_other_servers()
                if not self.context.is_persistent and is_last:
                    self.remove_all()
            except BackendError as error:
                logger.warning("not everything in %s was removed: %s", self.folder.base_path, error)
            finally:
                self.folder.leave()
