"""Object files: written whole under a temporary name, then renamed; checked while they are read.

A payload is read in parts, each summed while it is still in the processor's cache. Bytes go
straight between the file and the caller's memory. Knows no folder and no index.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, BackendFullError, CorruptObjectError, L2Error, ObjectMissingError
from lmcache.l2.envelope import (
    CHECKSUM_PART_BYTES,
    HEADER_BYTES_MAX,
    MAGIC,
    Header,
    PayloadChecksum,
    check_header,
    decode_header,
    header_bytes_of,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
ALIGN = 4096
FILE_MODE = 0o600
_FOLDER_MODE = 0o700
# Without the page cache a part is one request to the disk: larger ones keep it busy.
_DIRECT_PART_BYTES = 8 * CHECKSUM_PART_BYTES
# A file's time of change is its last use, this coarse: it orders objects after a restart.
_REFRESH_S = 60.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR, errno.ELOOP}
_MISSING = {errno.ENOENT, errno.ENOTDIR}
_NO_DIRECT = {errno.EINVAL, errno.EOPNOTSUPP}


class ObjectFiles:
    """Thread-safe. `is_direct`: past the page cache, where memory and file system allow it."""

    def __init__(
        self, is_direct: bool, read_ahead_bytes: int | None, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self.is_direct = is_direct
        self._read_ahead_bytes = read_ahead_bytes
        self._wall_clock = wall_clock
        self._local = threading.local()

    # Writing

    def write(self, temporary: bytes, path: bytes, header: bytes, data: memoryview) -> int:
        """Bytes taken. Whatever goes wrong, no temporary file is left. Raises BackendError, BackendFullError."""
        try:
            self._with_flags(data, lambda flags: self._write_temporary(temporary, flags, header, data))
            _move(temporary, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError):
                raise _store_error(error) from error
            raise
        return len(header) + len(data)

    def _write_temporary(self, path: bytes, flags: int, header: bytes, data: memoryview) -> None:
        area = self._area()[: len(header)]
        area[:] = header
        flags |= os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(path, flags, FILE_MODE)
        try:
            self._write_all(descriptor, [area, data])
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # a network file system may say only now that it is full

    def _write_all(self, descriptor: int, pieces: list[memoryview]) -> None:
        position = 0
        while pieces:
            count = os.pwritev(descriptor, pieces, position)
            position += count
            while pieces and count >= len(pieces[0]):
                count -= len(pieces.pop(0))
            if pieces:
                pieces[0] = pieces[0][count:]

    # Reading

    def read(self, path: bytes, key: ObjectKey, target: memoryview) -> None:
        """The payload into `target`. Raises ObjectMissingError, CorruptObjectError, BackendError."""

        def run(flags: int) -> None:
            with self._opened(path, flags) as (descriptor, status):
                header = self._header(descriptor, status)
                check_header(header, key, len(target))
                self._fill(descriptor, header, target, _DIRECT_PART_BYTES if flags else CHECKSUM_PART_BYTES)
                self._refresh(descriptor, status)

        with _read_errors():
            self._with_flags(target, run)

    def read_whole(self, path: bytes, key: ObjectKey) -> memoryview:
        """The payload, in memory of its own. Raises as `read` does."""
        with _read_errors(), self._opened(path) as (descriptor, status):
            header = self._header(descriptor, status)
            check_header(header, key, header.payload_bytes)
            target = memoryview(bytearray(header.payload_bytes))
            self._fill(descriptor, header, target, CHECKSUM_PART_BYTES)
            self._refresh(descriptor, status)
            return target

    def verify(self, path: bytes, key: ObjectKey) -> None:
        """Read and check it all. Raises as `read` does."""
        with _read_errors(), self._opened(path) as (descriptor, status):
            header = self._header(descriptor, status)
            check_header(header, key, header.payload_bytes)
            checksum, scratch = PayloadChecksum(), self._scratch()
            for start in range(0, header.payload_bytes, CHECKSUM_PART_BYTES):
                part = scratch[: min(CHECKSUM_PART_BYTES, header.payload_bytes - start)]
                self._read_all(descriptor, part, header.header_bytes + start)
                checksum.add(part)
            _check_sum(checksum.value(), header)

    def read_header(self, path: bytes) -> Header | None:
        """The header alone; None: this file is none of ours. Raises as `read` does."""
        with _read_errors(), self._opened(path) as (descriptor, status):
            if os.pread(descriptor, len(MAGIC), 0) != MAGIC:
                return None
            return self._header(descriptor, status)

    @contextlib.contextmanager
    def _opened(self, path: bytes, flags: int = 0) -> Iterator[tuple[int, os.stat_result]]:
        # Without waiting for whoever writes, should it be a pipe.
        descriptor = os.open(path, flags | os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CorruptObjectError("it is not a regular file")
            if self._read_ahead_bytes is not None and not flags:
                with contextlib.suppress(OSError):
                    os.posix_fadvise(descriptor, 0, self._read_ahead_bytes, os.POSIX_FADV_WILLNEED)
            yield descriptor, status
        finally:
            os.close(descriptor)

    def _header(self, descriptor: int, status: os.stat_result) -> Header:
        area = self._area()
        count = os.preadv(descriptor, [area[:ALIGN]], 0)
        size = header_bytes_of(area[:count])
        if size % ALIGN:
            raise CorruptObjectError("its header is not aligned")
        if size > count:
            count += os.preadv(descriptor, [area[ALIGN:size]], ALIGN)
        header = decode_header(area[:count])
        if size + header.payload_bytes != status.st_size:
            raise CorruptObjectError(f"it has {status.st_size} bytes and should have {size + header.payload_bytes}")
        return header

    def _fill(self, descriptor: int, header: Header, target: memoryview, part_bytes: int) -> None:
        checksum = PayloadChecksum()
        for start in range(0, len(target), part_bytes):
            part = target[start : start + part_bytes]
            self._read_all(descriptor, part, header.header_bytes + start)
            checksum.add(part)
        _check_sum(checksum.value(), header)

    def _read_all(self, descriptor: int, target: memoryview, position: int) -> None:
        while target:
            count = os.preadv(descriptor, [target], position)
            if not count:
                raise CorruptObjectError("it was cut short")
            target, position = target[count:], position + count

    def _refresh(self, descriptor: int, status: os.stat_result) -> None:
        """Note that it was used; a file system that is read-only keeps the old time."""
        if self._wall_clock() - status.st_mtime > _REFRESH_S:
            with contextlib.suppress(OSError):
                os.utime(descriptor)

    # Memory

    def _with_flags(self, memory: memoryview, run: Callable[[int], T]) -> T:
        """`run` with O_DIRECT where that is asked for and possible, else without."""
        if self.is_direct and _is_aligned(memory):
            try:
                return run(os.O_DIRECT)
            except OSError as error:
                if error.errno not in _NO_DIRECT:
                    raise
                if self.is_direct:
                    logger.warning("this file system refuses O_DIRECT: files go through the page cache")
                self.is_direct = False
        return run(0)

    def _area(self) -> memoryview:
        """Aligned room for a header, one for each thread."""
        return self._buffer("area", HEADER_BYTES_MAX)

    def _scratch(self) -> memoryview:
        return self._buffer("scratch", CHECKSUM_PART_BYTES)

    def _buffer(self, name: str, num_bytes: int) -> memoryview:
        found: memoryview | None = getattr(self._local, name, None)
        if found is None:
            found = memoryview(mmap.mmap(-1, num_bytes))
            setattr(self._local, name, found)
        return found


def _is_aligned(memory: memoryview) -> bool:
    if not memory or len(memory) % ALIGN:
        return False
    return int(np.frombuffer(memory, np.uint8).ctypes.data) % ALIGN == 0


def _move(temporary: bytes, path: bytes) -> None:
    try:
        os.rename(temporary, path)
    except FileNotFoundError:
        # Its folder is made by the first that needs it; where the base is gone this fails as well.
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(path), _FOLDER_MODE)
        os.rename(temporary, path)


def _check_sum(found: int, header: Header) -> None:
    if found != header.payload_xxh3:
        raise CorruptObjectError("its checksum does not match")


def _store_error(error: OSError) -> L2Error:
    text = f"cannot write an object: {error.strerror}"
    return BackendFullError(text) if error.errno in _FULL else BackendError(text)


@contextlib.contextmanager
def _read_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _MISSING:
            raise ObjectMissingError("its file is not there") from error
        # If the whole file system is to blame, the file cannot be removed either, and that is a BackendError.
        if error.errno in _UNREADABLE:
            raise CorruptObjectError(f"its file cannot be read: {error.strerror}") from error
        raise BackendError(f"cannot read an object: {error.strerror}") from error
