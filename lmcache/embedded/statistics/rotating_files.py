"""Lines appended to files of a folder: a new file when one is full, the oldest removed when there are too many."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable

_NAME = re.compile(r"chunk_hashes_(\d+)_(\d{6})\.jsonl")
_MICROSECONDS = 1_000_000
# Names that are tried, a microsecond apart, where others make files in this folder too.
_NAMES_MAX = 1000


class RotatingFiles:
    """One thread appends; the attributes may be read by any.

    Nothing is opened before the first line. The limit on files is that of the folder: files of earlier
    processes count. A line is whole or not there, unless the machine ends in the middle of it.
    """

    def __init__(self, folder: str, size_bytes_max: int, num_files_max: int, wall_clock: Callable[[], float]) -> None:
        self.folder = folder
        self.num_files_max = num_files_max
        self.num_files = 0
        self.size_bytes = 0
        self._size_bytes_max = size_bytes_max
        self._wall_clock = wall_clock
        self._descriptor: int | None = None

    def append(self, line: bytes) -> None:
        """Raises OSError; the line is lost then, and the next one is tried anew."""
        is_full = self.size_bytes > 0 and self.size_bytes + len(line) > self._size_bytes_max
        if self._descriptor is None or is_full or not os.fstat(self._descriptor).st_nlink:
            self._begin_file()
        self._write(line)

    def _begin_file(self) -> None:
        self.close()
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self._descriptor = self._create()
        self.size_bytes = 0
        self._remove_oldest()

    def _create(self) -> int:
        stamp = int(self._wall_clock() * _MICROSECONDS)
        for later in range(_NAMES_MAX):
            seconds, microseconds = divmod(stamp + later, _MICROSECONDS)
            path = os.path.join(self.folder, f"chunk_hashes_{seconds}_{microseconds:06d}.jsonl")
            with contextlib.suppress(FileExistsError):
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        raise FileExistsError(f"no free name for a new file in {self.folder}")

    def _remove_oldest(self) -> None:
        names = sorted((name for name in os.listdir(self.folder) if _NAME.fullmatch(name)), key=_age)
        self.num_files = len(names)
        for name in names[: max(0, len(names) - self.num_files_max)]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.folder, name))
            self.num_files -= 1

    def _write(self, line: bytes) -> None:
        assert self._descriptor is not None
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError:
            # A full disk may have taken the beginning of the line.
            os.ftruncate(self._descriptor, self.size_bytes)
            raise
        self.size_bytes += len(line)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):  # what the system could tell of earlier lines, nobody can repair
                os.close(descriptor)


def _age(name: str) -> tuple[int, int]:
    found = _NAME.fullmatch(name)
    assert found is not None
    return int(found[1]), int(found[2])
