"""A client's view of a pool: the pool mapped read-write, the index read-only.

Checks that it is the very pool the server means: same random id, same inode.
"""

from __future__ import annotations

import mmap
import os
import pathlib
import time
from collections.abc import Callable

import numpy as np

from lmcache.errors import DeclinedError, PoolError
from lmcache.memory.page_tables import map_pages
from lmcache.memory.pool_files import PAGE_BYTES, Geometry, decode_header, populated_bytes
from lmcache.memory.records import SlotReader

_SLICE_BYTES = 64 << 20
_WAIT_S = 0.05
_WAIT_S_MAX = 5.0


class PoolMapping:
    """Mappings of one pool. Thread-safe but for `close`."""

    def __init__(self, folder: pathlib.Path, pool_id: bytes, inode: int) -> None:
        """Raises DeclinedError if this process does not see the server's pool."""
        self.folder = folder
        self.pool_id = pool_id
        try:
            index_descriptor = os.open(folder / "index", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DeclinedError(_unseen(folder, f"cannot open its index: {error}")) from error
        try:
            header = decode_header(os.read(index_descriptor, PAGE_BYTES))
            if header is None or header[1] != pool_id or os.fstat(index_descriptor).st_ino != inode:
                raise DeclinedError(_unseen(folder, "a folder of that name here holds another pool"))
            self.geometry: Geometry = header[0]
            self._index = mmap.mmap(index_descriptor, self.geometry.index_bytes, prot=mmap.PROT_READ)
        finally:
            os.close(index_descriptor)
        try:
            pool_descriptor = os.open(folder / "pool", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise DeclinedError(_unseen(folder, f"cannot open its pool: {error}")) from error
        try:
            self._pool = mmap.mmap(pool_descriptor, self.geometry.pool_bytes)
        finally:
            os.close(pool_descriptor)
        self.slots = SlotReader(self._index, PAGE_BYTES, self.geometry.num_records)
        self.bytes = np.frombuffer(self._pool, dtype=np.uint8)

    def contains(self, offset: int, length: int) -> bool:
        return offset >= 0 and length > 0 and offset + length <= self.geometry.pool_bytes

    def touch_ahead(self, should_stop: Callable[[], bool]) -> None:
        """Map the pool's pages before they are used, following the server as it populates them.

        Meant for a background thread, ends when all is mapped.
        """
        position, wait_s = 0, _WAIT_S
        while position < self.geometry.pool_bytes and not should_stop():
            length = min(_SLICE_BYTES, populated_bytes(self._index) - position)
            if length <= 0:
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, _WAIT_S_MAX)  # the server may be out of memory for good
                continue
            wait_s = _WAIT_S
            if not map_pages(self.bytes, position, length):
                return
            position += length

    def close(self) -> None:
        """Unmap. Nobody may hold a view of `bytes` any more."""
        self.slots.close()
        del self.bytes
        try:
            self._index.close()
            self._pool.close()
        except BufferError as error:
            raise PoolError(f"the pool {self.folder} is still in use") from error


def read_nonce(folder: pathlib.Path) -> bytes:
    try:
        return (folder / "nonce").read_bytes()
    except OSError as error:
        raise DeclinedError(_unseen(folder, f"cannot read its nonce: {error}")) from error


def _unseen(folder: pathlib.Path, reason: str) -> str:
    return (
        f"this process does not see the server's pool {folder} ({reason}): both must run as the same user (or "
        f"with --l1-group) and share {folder.parent}, e.g. docker run --ipc=host or one mounted volume for both"
    )
