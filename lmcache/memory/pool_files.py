"""The files of one pool: a folder on tmpfs with the pool, its index, names and locks.

    <folder>/owner.lock   held by the server for life
    <folder>/pool         the KV bytes
    <folder>/index        one header page, then the records (see records.py)
    <folder>/names        names by id
    <folder>/nonce        proof that a client can see this folder
    <folder>/clients/     one lock file per client

Files are never truncated or resized: a mapped reader would die of SIGBUS. Another geometry
is another file, put in place by rename. The pool file is sparse until `populate` takes its
pages, so nothing may touch an offset that was not populated.
"""

from __future__ import annotations

import mmap
import os
import pathlib
import secrets
import shutil
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xxhash

from lmcache.core.sizes import align_up
from lmcache.errors import NoRoomError, PoolError, PoolInUseError
from lmcache.memory.client_lock import FileLock
from lmcache.memory.page_tables import map_pages
from lmcache.memory.records import RECORD_BYTES

PAGE_BYTES = 4096
_MAGIC = b"LMCPOOL1"
_HEADER = struct.Struct("<8sQQ16s")  # magic, pool bytes, number of records, pool id
# In the header page, outside the checksum: how many leading bytes of the pool have pages.
_POPULATED = struct.Struct("<Q")
_POPULATED_AT = 128
# One record per this many pool bytes: the smallest object that fills the pool.
_BYTES_PER_RECORD = 32 * 1024
_RECORDS_MIN = 1024
FOLDER_PREFIX = "lmcache-"


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes that never change in the life of a pool's files."""

    pool_bytes: int
    num_records: int

    @classmethod
    def for_pool(cls, pool_bytes: int, bytes_per_record: int = _BYTES_PER_RECORD) -> Geometry:
        pool_bytes = align_up(pool_bytes, PAGE_BYTES)
        return cls(pool_bytes, max(_RECORDS_MIN, pool_bytes // bytes_per_record))

    @property
    def index_bytes(self) -> int:
        return align_up(PAGE_BYTES + self.num_records * RECORD_BYTES, PAGE_BYTES)

    @property
    def total_bytes(self) -> int:
        return self.pool_bytes + self.index_bytes


@dataclass(frozen=True, slots=True)
class PoolAccess:
    """File modes: the owner alone, or a group too when one is named."""

    group_id: int | None = None

    @property
    def folder_mode(self) -> int:
        return 0o700 if self.group_id is None else 0o2770

    @property
    def file_mode(self) -> int:
        return 0o600 if self.group_id is None else 0o660


def encode_header(geometry: Geometry, pool_id: bytes) -> bytes:
    body = _HEADER.pack(_MAGIC, geometry.pool_bytes, geometry.num_records, pool_id)
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


def decode_header(content: bytes) -> tuple[Geometry, bytes] | None:
    """Geometry and pool id, or None if this is no header of this version."""
    if len(content) < _HEADER.size + 8:
        return None
    body = content[: _HEADER.size]
    (checksum,) = struct.unpack_from("<Q", content, _HEADER.size)
    magic, pool_bytes, num_records, pool_id = _HEADER.unpack(body)
    if magic != _MAGIC or xxhash.xxh3_64_intdigest(body) != checksum:
        return None
    return Geometry(pool_bytes, num_records), pool_id


def populated_bytes(index: mmap.mmap) -> int:
    """Leading bytes of the pool that a client may touch ahead of use."""
    value: int = _POPULATED.unpack_from(index, _POPULATED_AT)[0]
    return value


def read_geometry(folder: pathlib.Path) -> tuple[Geometry, bytes] | None:
    """What lies in a pool folder, if it is whole: header, and both files of the right size."""
    try:
        with (folder / "index").open("rb") as file:
            header = decode_header(file.read(PAGE_BYTES))
        if header is None:
            return None
        geometry = header[0]
        sizes = (folder / "pool").stat().st_size, (folder / "index").stat().st_size
    except OSError:
        return None
    return header if sizes == (geometry.pool_bytes, geometry.index_bytes) else None


class PoolFiles:
    """The server's hold on one pool: the owner lock and both mappings. One owner."""

    def __init__(
        self,
        folder: pathlib.Path,
        geometry: Geometry,
        access: PoolAccess = PoolAccess(),
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        adopts: bool = True,
    ) -> None:
        """Take the owner lock; adopt the files of this geometry (if it `adopts`), else make new ones.

        Raises PoolInUseError if another server holds the pool, PoolError if the folder
        cannot be used, NoRoomError if the index does not fit.
        """
        self.folder = folder
        self.geometry = geometry
        self.access = access
        self._random_bytes = random_bytes
        self._data: memoryview | None = None
        self._map_mutex = threading.Lock()
        self._make_folder()
        try:
            self._owner = FileLock(folder / "owner.lock", access.file_mode)
        except BlockingIOError:
            raise PoolInUseError(f"pool {folder} is held by another lmcache server") from None
        try:
            found = read_geometry(folder) if adopts else None
            self.is_adopted = found is not None and found[0] == geometry
            self.pool_id = found[1] if found is not None and self.is_adopted else self._create()
            self._open()
        except BaseException:
            self._owner.release()
            raise

    def _make_folder(self) -> None:
        try:
            for folder in (self.folder, self.folder / "clients"):
                folder.mkdir(mode=self.access.folder_mode, exist_ok=True)
                if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                    raise PoolError(f"{folder} belongs to somebody else: remove it or choose another --shm-name")
                if self.access.group_id is not None:
                    os.chown(folder, -1, self.access.group_id)
                folder.chmod(self.access.folder_mode)
        except OSError as error:
            raise PoolError(f"cannot make the pool folder {self.folder}: {error}") from error

    def _create(self) -> bytes:
        """Make both files under temporary names, then move them into place, index last."""
        pool_id = self._random_bytes(16)
        for name in ("index", "pool", "names", "names.new"):
            (self.folder / name).unlink(missing_ok=True)
        for name, size in (("pool", self.geometry.pool_bytes), ("index", self.geometry.index_bytes)):
            temporary = self.folder / f"{name}.new"
            temporary.unlink(missing_ok=True)
            descriptor = self._open_file(temporary, os.O_CREAT | os.O_EXCL)
            try:
                os.ftruncate(descriptor, size)
                if name == "index":
                    self._fill_index(descriptor, pool_id)
            finally:
                os.close(descriptor)
            os.replace(temporary, self.folder / name)
        return pool_id

    def _fill_index(self, descriptor: int, pool_id: bytes) -> None:
        try:
            os.posix_fallocate(descriptor, 0, self.geometry.index_bytes)
        except OSError as error:
            raise NoRoomError(f"no room for the index of {self.geometry.index_bytes} bytes: {error}") from error
        os.pwrite(descriptor, encode_header(self.geometry, pool_id), 0)

    def _open_file(self, path: pathlib.Path, flags: int = 0) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, self.access.file_mode)
        os.fchmod(descriptor, self.access.file_mode)
        if self.access.group_id is not None:
            os.fchown(descriptor, -1, self.access.group_id)
        return descriptor

    def _open(self) -> None:
        self.pool_descriptor = self._open_file(self.folder / "pool")
        index_descriptor = self._open_file(self.folder / "index")
        self.index = mmap.mmap(index_descriptor, self.geometry.index_bytes)
        status = os.fstat(index_descriptor)
        self.inode = status.st_ino
        os.close(index_descriptor)
        self.nonce = self._random_bytes(16)
        temporary = self.folder / "nonce.new"
        descriptor = self._open_file(temporary, os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, self.nonce)
        os.close(descriptor)
        os.replace(temporary, self.folder / "nonce")

    def populate(self, start: int, length: int) -> None:
        """Take the pages of a range, now, so that nobody meets a SIGBUS later."""
        try:
            os.posix_fallocate(self.pool_descriptor, start, length)
        except OSError as error:
            raise NoRoomError(f"no room for bytes {start} to {start + length} of the pool: {error}") from error
        _POPULATED.pack_into(self.index, _POPULATED_AT, start + length)

    def map_ahead(self, start: int, length: int) -> bool:
        """Map populated bytes into this process, for who is going to copy. False: pages are mapped on first use."""
        return map_pages(np.frombuffer(self.view(0, self.geometry.pool_bytes), np.uint8), start, length)

    def view(self, offset: int, length: int) -> memoryview:
        """Bytes of the pool, which this process maps when it first looks at them. They must be populated."""
        data = self._data
        if data is None:
            with self._map_mutex:
                data = self._map()
        return data[offset : offset + length]

    def _map(self) -> memoryview:
        """Under the map mutex. Raises PoolError once the descriptor is closed: its number may be another file's."""
        if self._data is None:
            if self.pool_descriptor < 0:
                raise PoolError(f"the pool {self.folder} is closed")
            self._data = memoryview(mmap.mmap(self.pool_descriptor, self.geometry.pool_bytes))
        return self._data

    def _close_pool_file(self) -> None:
        """Under the map mutex."""
        os.close(self.pool_descriptor)
        self.pool_descriptor = -1

    def is_lost(self) -> bool:
        """Whether someone removed or replaced the files under us, or we let go of them."""
        if self.pool_descriptor < 0:
            return True
        try:
            if os.fstat(self.pool_descriptor).st_nlink == 0:
                return True
            return (self.folder / "index").stat().st_ino != self.inode
        except OSError:
            return True

    def abandon(self) -> None:
        """Let go of the lock and of descriptors, but unmap nothing: somebody may still look at the pages,
        and somebody else may be about to."""
        with self._map_mutex:
            self._map()
            self._close_pool_file()
        self._owner.release()

    def close(self, keep: bool, release: bool = True) -> None:
        """Let go; remove the folder unless `keep`. Mapped readers keep their pages. Without `release`,
        the owner lock stays until the process ends."""
        try:
            self.index.close()
        except BufferError as error:
            raise PoolError("the index is still in use") from error
        with self._map_mutex:
            self._data = None  # unmapped when its last view is gone
            self._close_pool_file()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        if release:
            self._owner.release()
