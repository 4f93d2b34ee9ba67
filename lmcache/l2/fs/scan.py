"""What lies in the folder: all of it at start, then shard by shard where others write as well.

No payload is read, and of files whose names are hashed only the header.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
from collections.abc import Callable, Sequence

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, CorruptObjectError, ObjectMissingError
from lmcache.l2.fs.files import ObjectFiles
from lmcache.l2.fs.folder import CacheFolder
from lmcache.l2.fs.names import NUM_SHARDS, NameReader, file_name, is_hashed, shard_of
from lmcache.l2.object_batch import ObjectBatch, Space
from lmcache.l2.object_index import ObjectIndex

logger = logging.getLogger(__name__)

# A folder that changed so shortly before it was read may change again within the same tick of its clock.
_SETTLED_NS = 2_000_000_000
_UNKNOWN_NS = -1


class Scanner:
    """One thread at a time. A rescan tells of objects whose files others stored, and of those whose files are gone."""

    def __init__(
        self,
        folder: CacheFolder,
        files: ObjectFiles,
        index: ObjectIndex,
        on_found: Callable[[Sequence[ObjectKey]], None],
        on_gone: Callable[[ObjectKey], None],
        wall_clock_ns: Callable[[], int] = time.time_ns,
        removes_damaged: bool = True,
    ) -> None:
        self._removes_damaged = removes_damaged
        self._folder = folder
        self._files = files
        self._index = index
        self._on_found = on_found
        self._on_gone = on_gone
        self._wall_clock_ns = wall_clock_ns
        self._names = NameReader()
        self._changed_ns = [_UNKNOWN_NS] * NUM_SHARDS
        self._next_shard = 0

    def find_all(self) -> ObjectBatch:
        """Every object, in the order of last use. Raises BackendError."""
        batch = ObjectBatch()
        for shard in range(NUM_SHARDS):
            self._changed_ns[shard] = self._state_of(shard)
            self._find(shard, self._list(shard), batch)
        return batch

    def forget_state(self) -> None:
        """Look at every shard again."""
        self._changed_ns = [_UNKNOWN_NS] * NUM_SHARDS

    def rescan(self, num_files_max: int) -> int:
        """Compare shards that changed with the index, in turn, until so many files were looked at; how many shards.
        Raises BackendError."""
        num_compared = num_files = 0
        for _ in range(NUM_SHARDS):
            if num_files >= num_files_max:
                break
            shard = self._next_shard
            self._next_shard = (shard + 1) % NUM_SHARDS
            state = self._state_of(shard)
            if state == self._changed_ns[shard] and state != _UNKNOWN_NS:
                continue
            num_files += self._compare(shard)
            self._changed_ns[shard] = state
            num_compared += 1
        return num_compared

    def _state_of(self, shard: int) -> int:
        """When a shard's folder was changed last, 0 if there is none; unknown while it may still be changing."""
        try:
            changed_ns = os.stat(self._folder.shard_path(shard)).st_mtime_ns
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise BackendError(f"{self._folder.base_path} cannot be read: {error.strerror}") from error
        return changed_ns if self._wall_clock_ns() - changed_ns > _SETTLED_NS else _UNKNOWN_NS

    def _compare(self, shard: int) -> int:
        # The index first: what it holds then has its file, unless it was removed since.
        held = {file_name(key): key for key in self._index.keys_starting_with(shard)}
        names = self._list(shard)
        path = self._folder.shard_path(shard)
        for name, key in held.items():
            if name not in names and not os.path.lexists(os.path.join(path, name)):
                self._on_gone(key)
        unknown = [self._identify(shard, name) for name in names - held.keys()]
        self._on_found([found[0].key(found[1]) for found in unknown if found is not None])
        return len(names) + 1

    def _list(self, shard: int) -> set[bytes]:
        try:
            return set(os.listdir(self._folder.shard_path(shard)))
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise BackendError(f"{self._folder.base_path} cannot be read: {error.strerror}") from error

    def _find(self, shard: int, names: set[bytes], batch: ObjectBatch) -> None:
        """Add to `batch` those of these files that are objects."""
        if not names:
            return
        try:
            descriptor = os.open(self._folder.shard_path(shard), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise BackendError(f"{self._folder.base_path} cannot be read: {error.strerror}") from error
        try:
            for name in names:
                found = self._identify(shard, name)
                if found is None:
                    continue
                try:
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                except OSError:
                    continue  # another server removed it just now
                if stat.S_ISREG(status.st_mode):
                    batch.add(*found, status.st_size, status.st_mtime_ns)
        finally:
            os.close(descriptor)

    def _identify(self, shard: int, name: bytes) -> tuple[Space, bytes] | None:
        return self._names.read(name, shard) or self._read_key(shard, name)

    def _read_key(self, shard: int, name: bytes) -> tuple[Space, bytes] | None:
        """From the header of a file with a hashed name. One that is ours and damaged is removed, but not by a
        reader."""
        if not is_hashed(name):
            return None
        path = os.path.join(self._folder.shard_path(shard), name)
        try:
            header = self._files.read_header(path)
        except (ObjectMissingError, BackendError):
            return None
        except CorruptObjectError as error:
            if self._removes_damaged:
                logger.warning("removed an object: %s", error)
                with contextlib.suppress(OSError):
                    os.unlink(path)
            return None
        if header is None or file_name(header.key) != name or shard_of(header.key) != shard:
            return None
        key = header.key
        return Space(key.model_name, key.kv_rank, key.object_group_id, key.cache_salt), key.chunk_hash
