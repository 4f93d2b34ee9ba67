"""The file system adapter's objects, reached behind its back."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile

from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import GIB
from lmcache.l2.base import AdapterContext, L2Adapter
from lmcache.l2.fs.adapter import FSL2Adapter
from lmcache.l2.fs.config import FSConfig
from lmcache.l2.fs.names import file_name, shard_name, shard_of
from lmcache.testing.l2_backend import FilesBackend


class FSBackend(FilesBackend):
    """A folder of its own under `parent`; `settings` are those of the adapter."""

    def __init__(self, parent: pathlib.Path | None = None, **settings: object) -> None:
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="lmcache-test-fs-", dir=parent))
        self._settings = settings

    def make(self, context: AdapterContext, capacity_bytes: int) -> L2Adapter:
        settings = {"base_path": str(self.base), "max_capacity_gb": capacity_bytes / GIB, **self._settings}
        return FSL2Adapter(FSConfig(**settings), context)  # type: ignore[arg-type]

    def path(self, key: ObjectKey) -> pathlib.Path:
        return self.base / os.fsdecode(shard_name(shard_of(key))) / os.fsdecode(file_name(key))

    def num_objects(self) -> int:
        files = [path for path in self.base.rglob("*") if path.is_file()]
        return sum(path.suffix != ".lock" for path in files)

    def close(self) -> None:
        shutil.rmtree(self.base, ignore_errors=True)
