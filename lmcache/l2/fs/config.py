"""Settings of the file system adapter."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

from lmcache.core.sizes import GIB
from lmcache.errors import ConfigError
from lmcache.l2.fields import flag, not_negative, text, whole_number


@dataclass(frozen=True, slots=True)
class FSConfig:
    """`max_capacity_gb` in GiB, 0: unlimited. `relative_tmp_dir`: a folder under `base_path` for files that are
    being written. `read_ahead_size`: bytes that the kernel is asked to fetch at once when a file is opened."""

    base_path: str
    relative_tmp_dir: str | None = None
    read_ahead_size: int | None = None
    use_odirect: bool = False
    num_workers: int = 4
    max_capacity_gb: float = 0

    def __post_init__(self) -> None:
        text("base_path", self.base_path)
        _no_nul("base_path", self.base_path)
        if self.relative_tmp_dir is not None:
            text("relative_tmp_dir", self.relative_tmp_dir)
            _no_nul("relative_tmp_dir", self.relative_tmp_dir)
            given = pathlib.PurePosixPath(self.relative_tmp_dir)
            if given.is_absolute() or ".." in given.parts:
                raise ConfigError(f"relative_tmp_dir must lie under base_path (got {self.relative_tmp_dir!r})")
        if self.read_ahead_size is not None:
            whole_number("read_ahead_size", self.read_ahead_size)
        flag("use_odirect", self.use_odirect)
        whole_number("num_workers", self.num_workers)
        not_negative("max_capacity_gb", self.max_capacity_gb)

    @property
    def capacity_bytes(self) -> int:
        return int(self.max_capacity_gb * GIB)


def _no_nul(name: str, value: str) -> None:
    if "\0" in value:
        raise ConfigError(f"{name} must not contain a NUL character (got {value!r})")
