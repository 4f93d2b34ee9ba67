"""Locks between servers on one folder: a file that is locked for as long as its owner lives, however it ends.

`flock` and not a POSIX record lock: two adapters of one process must see each other's, and
closing some other descriptor of the file must not drop it.
"""

from __future__ import annotations

import errno
import fcntl
import os

from lmcache.errors import ConfigError

_FILE_MODE = 0o600
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


class LockFile:
    """One owner, not thread-safe. Raises OSError where the folder cannot be used."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        return self._descriptor is not None

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it."""
        if self._descriptor is not None:
            return True
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        if _try_lock(descriptor, self.path):
            self._descriptor = descriptor
            if self.is_in_place():
                return True
            self._descriptor = None  # somebody removed the file between our opening and locking it
        os.close(descriptor)
        return False

    def is_in_place(self) -> bool:
        """Whether the file that is locked is still the one that others would look at."""
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self, is_removed: bool = False) -> None:
        if self._descriptor is None:
            return
        try:
            if is_removed and self.is_in_place():
                os.unlink(self.path)
        finally:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(path: bytes) -> bool:
    """Whether a live owner holds the lock; a lock file without one is removed."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not _try_lock(descriptor, path):
            return True
        os.unlink(path)
        return False
    except FileNotFoundError:
        return False
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, path: bytes) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            folder = os.fsdecode(os.path.dirname(path))
            raise ConfigError(
                f"the file system of {folder} has no file locks, and servers that share it need them"
            ) from error
        raise
    return True
