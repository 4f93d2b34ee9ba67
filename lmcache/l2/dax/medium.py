"""Bytes of one device or file, at offsets; held by one server at a time. Knows no slots.

Files and block devices are read and written by calls, which answer for a file that somebody
cut short where a mapping would end the process with SIGBUS. Only a Device-DAX character
device, which knows no such calls and cannot be cut, is mapped. No file is ever resized here.
"""

from __future__ import annotations

import abc
import fcntl
import mmap
import os
import pathlib
import stat

import numpy as np

from lmcache.errors import BackendError, ConfigError

_OPEN_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY
_SYSFS_CHARACTER_DEVICES = pathlib.Path("/sys/dev/char")


class Medium(abc.ABC):
    """Thread-safe but for `resize` and `close`. Owns the descriptor, and through it the lock."""

    def __init__(self, path: str, descriptor: int, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._descriptor = descriptor

    @abc.abstractmethod
    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Raises BackendError."""

    @abc.abstractmethod
    def read(self, offset: int, target: memoryview) -> int:
        """Fill `target`; fewer bytes than that where the device ends early. Raises BackendError."""

    @abc.abstractmethod
    def resize(self, size_bytes: int) -> None:
        """Use more or less of the device. Raises BackendError, ConfigError; then nothing has changed."""

    @property
    def is_cut_short(self) -> bool:
        """Whether the device has become smaller than what is used of it."""
        return False

    def unlock(self) -> None:
        """Let others have the device."""
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Nobody may read or write any more. Idempotent."""
        if self._descriptor >= 0:
            self.unlock()
            os.close(self._descriptor)
            self._descriptor = -1


class FileMedium(Medium):
    """A regular file or a block device."""

    def __init__(self, path: str, descriptor: int, size_bytes: int) -> None:
        super().__init__(path, descriptor, size_bytes)
        self._check_size(size_bytes)

    def write(self, offset: int, data: memoryview | bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                count = os.pwrite(self._descriptor, rest, offset)
                rest, offset = rest[count:], offset + count
        except OSError as error:
            raise BackendError(f"cannot write to {self.path}: {error.strerror}") from error

    def read(self, offset: int, target: memoryview) -> int:
        done = 0
        try:
            while done < len(target):
                count = os.preadv(self._descriptor, [target[done:]], offset + done)
                if not count:
                    break
                done += count
        except OSError as error:
            raise BackendError(f"cannot read from {self.path}: {error.strerror}") from error
        return done

    def resize(self, size_bytes: int) -> None:
        self._check_size(size_bytes)
        self.size_bytes = size_bytes

    @property
    def is_cut_short(self) -> bool:
        return self._length() < self.size_bytes

    def _length(self) -> int:
        status = os.fstat(self._descriptor)
        return status.st_size if stat.S_ISREG(status.st_mode) else os.lseek(self._descriptor, 0, os.SEEK_END)

    def _check_size(self, size_bytes: int) -> None:
        length = self._length()
        if size_bytes > length:
            raise ConfigError(f"{self.path} has {length} bytes, less than the {size_bytes} asked for")


class MappedMedium(Medium):
    """A Device-DAX character device. `length_bytes` 0: the device does not tell its length.

    A view that a reader still has keeps an old mapping alive.
    """

    def __init__(self, path: str, descriptor: int, size_bytes: int, length_bytes: int = 0) -> None:
        super().__init__(path, descriptor, size_bytes)
        self._length_bytes = length_bytes
        self._bytes = self._map(size_bytes)

    def _map(self, size_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        if self._length_bytes and size_bytes > self._length_bytes:
            raise ConfigError(f"{self.path} has {self._length_bytes} bytes, less than the {size_bytes} asked for")
        try:
            return np.frombuffer(mmap.mmap(self._descriptor, size_bytes), dtype=np.uint8)
        except (OSError, ValueError, OverflowError) as error:
            hint = "a Device-DAX size must be a multiple of the device's alignment, often 2 MiB"
            raise BackendError(f"cannot map {size_bytes} bytes of {self.path}: {error} ({hint})") from error

    def write(self, offset: int, data: memoryview | bytes) -> None:
        source = np.frombuffer(data, dtype=np.uint8)
        np.copyto(self._bytes[offset : offset + len(source)], source)  # releases the interpreter

    def read(self, offset: int, target: memoryview) -> int:
        source = self._bytes[offset : offset + len(target)]
        np.copyto(np.frombuffer(target, dtype=np.uint8)[: len(source)], source)
        return len(source)

    def resize(self, size_bytes: int) -> None:
        self._bytes = self._map(size_bytes)
        self.size_bytes = size_bytes

    def close(self) -> None:
        self._bytes = np.empty(0, dtype=np.uint8)
        super().close()


def open_medium(path: str, size_bytes: int) -> Medium:
    """The device, locked. Raises BackendError, ConfigError."""
    try:
        mode, number = os.stat(path).st_mode, os.stat(path).st_rdev
        length_bytes = _check_kind(path, mode, number)
        # The kernel refuses a block device to O_EXCL while it is mounted.
        descriptor = os.open(path, _OPEN_FLAGS | (os.O_EXCL if stat.S_ISBLK(mode) else 0))
    except (OSError, ValueError) as error:
        raise BackendError(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        _lock(path, descriptor)
        if stat.S_ISCHR(mode):
            return MappedMedium(path, descriptor, size_bytes, length_bytes)
        return FileMedium(path, descriptor, size_bytes)
    except BaseException:
        os.close(descriptor)
        raise


def _lock(path: str, descriptor: int) -> None:
    """Not a record lock: those are shared by all of a process, and end with any descriptor of the file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BackendError(f"{path} is in use by another server or adapter") from error
    except OSError as error:
        raise BackendError(f"cannot lock {path}: {error.strerror}") from error


def _check_kind(path: str, mode: int, number: int) -> int:
    """The length of a character device, 0 where it does not tell. Only Device-DAX may be written all over."""
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return 0
    folder = _SYSFS_CHARACTER_DEVICES / f"{os.major(number)}:{os.minor(number)}"
    if not stat.S_ISCHR(mode) or (folder / "subsystem").resolve().name != "dax":
        raise ConfigError(f"{path} is neither a regular file nor a block device nor a Device-DAX device")
    try:
        return int((folder / "size").read_text())
    except (OSError, ValueError):
        return 0
