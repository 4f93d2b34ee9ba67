"""The folder that holds the objects: its layout, who else uses it, who evicts, and what dead writers left.

    <base>/<2 hex digits>/<object>.data
    <base>/.lmcache/evictor.lock            held by the one server that evicts
    <base>/.lmcache/servers/<owner>.lock    held by every server, for as long as it lives
    <base>/.lmcache/tmp/<owner>.<n>.tmp     files being written, or under `relative_tmp_dir`

An owner is a server's boot id and a number, so a temporary file says whose it is. Knows no index.
"""

from __future__ import annotations

import itertools
import os
import re
import stat

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, ConfigError
from lmcache.l2.fs.locks import LockFile, is_locked
from lmcache.l2.fs.names import file_name, shard_name, shard_of

FOLDER_MODE = 0o700
_SERVICE = b".lmcache"
_OWNERS_MAX = 1000
_LOCK_SUFFIX = b".lock"
_TEMPORARY = re.compile(rb"([0-9a-f]+-[0-9]+)\.[0-9]+\.tmp")


class CacheFolder:
    """Paths may be asked for from any thread; everything else is for one at a time. A reader makes nothing, and is
    none of the folder's servers."""

    def __init__(self, base_path: str, relative_tmp_dir: str | None, boot_id: int, is_reader: bool = False) -> None:
        """Makes the folder if it is missing. Raises ConfigError."""
        self._is_reader = is_reader
        self.base_path = os.path.abspath(os.path.expanduser(base_path))
        self._base = os.fsencode(self.base_path)
        self._servers = os.path.join(self._base, _SERVICE, b"servers")
        given = os.fsencode(relative_tmp_dir) if relative_tmp_dir else os.path.join(_SERVICE, b"tmp")
        self._temporaries = os.path.join(self._base, given)
        self._boot_id = boot_id
        self._counter = itertools.count()
        self._evictor = LockFile(os.path.join(self._base, _SERVICE, b"evictor.lock"))
        self._own: LockFile | None = None
        self._owner = b""
        self._device = None if is_reader else self._prepare()

    def _prepare(self) -> int:
        """The number of the device it lies on."""
        try:
            os.makedirs(self._base, FOLDER_MODE, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(f"base_path {self.base_path} is not a directory") from error
        except OSError as error:
            raise ConfigError(f"base_path {self.base_path} cannot be made: {error.strerror}") from error
        if not os.access(self._base, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(f"base_path {self.base_path} is not writable for this user")
        try:
            self._make_folders()
            device = os.stat(self._base).st_dev
            if os.stat(self._temporaries).st_dev != device:
                raise ConfigError("relative_tmp_dir must lie on the same file system as base_path")
        except OSError as error:
            raise ConfigError(f"{os.fsdecode(error.filename)} cannot be made: {error.strerror}") from error
        return device

    def _make_folders(self) -> None:
        os.makedirs(self._servers, FOLDER_MODE, exist_ok=True)
        os.makedirs(self._temporaries, FOLDER_MODE, exist_ok=True)

    # Paths

    def object_path(self, key: ObjectKey) -> bytes:
        return os.path.join(self._base, shard_name(shard_of(key)), file_name(key))

    def shard_path(self, shard: int) -> bytes:
        return os.path.join(self._base, shard_name(shard))

    def temporary_path(self) -> bytes:
        return os.path.join(self._temporaries, b"%s.%d.tmp" % (self._owner, next(self._counter)))

    # Among other servers

    def enter(self) -> None:
        """Be one of the folder's servers. Raises BackendError where it is not there, or not the same."""
        if self._is_reader:  # of a folder that somebody else may yet make
            if not self.is_in_place():
                raise BackendError(f"base_path {self.base_path} is not a directory that this user can read")
            return
        try:
            status = os.stat(self._base)
            if not stat.S_ISDIR(status.st_mode) or status.st_dev != self._device:
                # Most likely a mount that was lost: what lies there now is not ours to fill.
                raise BackendError(f"{self.base_path} is not the folder it was when the server started")
            self._make_folders()
            self._own = self._lock_a_name()
            self._evictor.try_acquire()
        except OSError as error:
            raise BackendError(f"{self.base_path} cannot be used: {error.strerror}") from error

    def _lock_a_name(self) -> LockFile:
        # One server may have several adapters on one folder.
        for number in range(_OWNERS_MAX):
            owner = b"%016x-%d" % (self._boot_id, number)
            lock = LockFile(os.path.join(self._servers, owner + _LOCK_SUFFIX))
            if lock.try_acquire():
                self._owner = owner
                return lock
        raise BackendError(f"no free name for this server in {os.fsdecode(self._servers)}")

    def leave(self) -> None:
        for lock, is_removed in ((self._evictor, False), (self._own, True)):
            if lock is not None:
                try:
                    lock.release(is_removed)
                except OSError as error:
                    raise BackendError(f"{self.base_path} cannot be left: {error.strerror}") from error

    def is_in_place(self) -> bool:
        """Whether the folder is still the one that was entered."""
        try:
            if self._is_reader:
                return os.path.isdir(self._base) and os.access(self._base, os.R_OK | os.X_OK)
            return self._own is not None and self._own.is_in_place() and os.path.isdir(self._temporaries)
        except OSError:
            return False

    @property
    def is_evictor(self) -> bool:
        return self._evictor.is_held

    def try_become_evictor(self) -> None:
        """Where the one before is gone. Raises BackendError."""
        if self._is_reader:
            return
        try:
            if self._evictor.is_held and not self._evictor.is_in_place():
                self._evictor.release()
            self._evictor.try_acquire()
        except OSError as error:
            raise BackendError(f"{self.base_path} cannot be used: {error.strerror}") from error

    def num_other_servers(self) -> int:
        """Live ones; the lock files of dead ones are removed. Raises BackendError."""
        if self._is_reader:
            return 0
        try:
            names = os.listdir(self._servers)
            own = self._owner + _LOCK_SUFFIX
            return sum(name != own and is_locked(os.path.join(self._servers, name)) for name in names)
        except OSError as error:
            raise BackendError(f"{self.base_path} cannot be used: {error.strerror}") from error

    def sweep(self) -> int:
        """Remove temporary files whose writers are dead; how many. Other files are left alone. Raises BackendError."""
        if self._is_reader:
            return 0
        num_removed = 0
        alive: dict[bytes, bool] = {self._owner: True}
        try:
            # A live writer has held its lock since before it made its first file.
            for name in os.listdir(self._temporaries):
                found = _TEMPORARY.fullmatch(name)
                if found is None:
                    continue
                owner = found[1]
                if owner not in alive:
                    alive[owner] = is_locked(os.path.join(self._servers, owner + _LOCK_SUFFIX))
                if not alive[owner]:
                    os.unlink(os.path.join(self._temporaries, name))
                    num_removed += 1
        except FileNotFoundError:
            pass  # another server sweeps as well
        except OSError as error:
            raise BackendError(f"{self.base_path} cannot be swept: {error.strerror}") from error
        return num_removed
