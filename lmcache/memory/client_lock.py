"""Proof of life between processes: a POSIX record lock on a file of the client's own.

The kernel frees the lock when its process dies, however it dies and in whatever PID
namespace it ran; a stopped process keeps it. A process that closes any descriptor of the
file loses the lock, hence exactly one descriptor per file, opened here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import struct

from lmcache.errors import PoolError

_FOLDER = "clients"
_LOCK_TRIES = 10
_HELD = {errno.EACCES, errno.EAGAIN}
# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("hhqqixxxx")


def lock_path(pool_folder: pathlib.Path, client_uid: int) -> pathlib.Path:
    return pool_folder / _FOLDER / f"{client_uid:016x}.lock"


class FileLock:
    """An exclusive record lock on a file, held until `release` or the death of the process."""

    def __init__(self, path: pathlib.Path, mode: int = 0o600) -> None:
        """Raises BlockingIOError if another process holds it."""
        self.path = path
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        try:
            os.fchmod(self._descriptor, mode)
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            self._descriptor = None
            if error.errno in _HELD:
                raise BlockingIOError(error.errno, f"{path} is locked by another process") from error
            raise

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class ClientLock(FileLock):
    """Client side: `client_uid` is alive for as long as this is held."""

    def __init__(self, pool_folder: pathlib.Path, client_uid: int, mode: int = 0o600) -> None:
        for _ in range(_LOCK_TRIES):
            try:
                super().__init__(lock_path(pool_folder, client_uid), mode)
            except OSError as error:
                raise PoolError(f"cannot lock the client file in {pool_folder / _FOLDER}: {error}") from error
            if self.is_reachable():
                return
            self.release()  # the server swept the file between our opening and locking it
        raise PoolError(f"the client file in {pool_folder / _FOLDER} is removed again and again")

    def is_reachable(self) -> bool:
        """Whether the locked file is still the one the server would look at."""
        try:
            return self._descriptor is not None and os.fstat(self._descriptor).st_nlink > 0
        except OSError:
            return False


def is_locked(path: pathlib.Path) -> bool | None:
    """Whether another process holds the lock; None if there is no such file, or it is not ours to ask.

    It asks the kernel and takes nothing, so it cannot get in the way of a client that is
    just starting. A lock of this process itself does not show.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, query)
    finally:
        os.close(descriptor)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def is_client_dead(pool_folder: pathlib.Path, client_uid: int) -> bool:
    """True only with proof: the client's file is there and nobody holds its lock.

    A missing file proves nothing (someone may have swept the folder), so it is not death.
    """
    return is_locked(lock_path(pool_folder, client_uid)) is False


def remove_client_file(pool_folder: pathlib.Path, client_uid: int) -> None:
    """Remove the file of a dead client; one that is locked meanwhile stays.

    Removed under its lock, so that a client that is just starting either finds it locked or
    sees that its file is gone.
    """
    path = lock_path(pool_folder, client_uid)
    if not path.exists():
        return
    try:
        lock = FileLock(path)
    except OSError:
        return
    path.unlink(missing_ok=True)
    lock.release()


def known_client_uids(pool_folder: pathlib.Path) -> list[int]:
    folder = pool_folder / _FOLDER
    uids = []
    for path in folder.glob("*.lock") if folder.is_dir() else ():
        try:
            uids.append(int(path.stem, 16))
        except ValueError:
            continue
    return uids
