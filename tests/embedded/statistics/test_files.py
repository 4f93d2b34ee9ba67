"""Files of chunk hashes: their lines and names, turns and limits, and a disk or folder that does not take them."""

from __future__ import annotations

import errno
import json
import logging
import os
import pathlib
import re
from typing import Any

import pytest

from lmcache.embedded.statistics.file_hash import FileHash
from lmcache.embedded.statistics.rotating_files import RotatingFiles
from tests.conftest import FakeClock

MANY = 1 << 30
DIGESTS = (bytes(range(32)), bytes(32))


def lines_of(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Of all files, in the order of their names."""
    return [json.loads(line) for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]


def files_in(folder: pathlib.Path, size_bytes_max: int = MANY, num_files_max: int = 3) -> RotatingFiles:
    return RotatingFiles(str(folder), size_bytes_max, num_files_max, FakeClock(1_700_000_000.25))


def test_a_line_for_each_lookup(tmp_path: pathlib.Path) -> None:
    strategy = FileHash(files_in(tmp_path / "hashes"))
    assert not (tmp_path / "hashes").exists()
    assert strategy.count("r1", 1.5, "", DIGESTS) == 2
    assert strategy.count('r"2\n', 2.5, "", DIGESTS[:1] * 2) == 1
    strategy.close()
    hashes = [f"0x{digest.hex()}" for digest in DIGESTS]
    assert lines_of(tmp_path / "hashes") == [
        {"timestamp": 1.5, "lookup_id": "r1", "chunk_hashes": hashes},
        {"timestamp": 2.5, "lookup_id": 'r"2\n', "chunk_hashes": hashes[:1] * 2},
    ]
    (path,) = (tmp_path / "hashes").iterdir()
    assert path.name == "chunk_hashes_1700000000_250000.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    assert strategy.figures() == {
        "file_count": 1, "current_file_size": path.stat().st_size, "file_max_count": 3,
        "output_dir": str(tmp_path / "hashes"), "failed_writes": 0,
    }  # fmt: skip


def test_a_full_file_gives_way_to_the_next_and_the_oldest_goes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "chunk_hashes_99_000000.jsonl").write_text("of an earlier process\n")
    (tmp_path / "notes.txt").write_text("of somebody else")
    files = files_in(tmp_path, size_bytes_max=10)
    for line in (b"1234\n", b"5678\n", b"9\n"):
        files.append(line)
    assert (files.num_files, files.size_bytes) == (3, 2)
    files.append(b"too long for any\n")
    files.append(b"last\n")
    files.close()
    kept = sorted(tmp_path.glob("chunk_hashes_*"))
    assert [path.read_text() for path in kept] == ["9\n", "too long for any\n", "last\n"]
    assert all(re.fullmatch(r"chunk_hashes_1700000000_\d{6}\.jsonl", path.name) for path in kept)
    assert (tmp_path / "notes.txt").exists()


def test_two_processes_in_one_folder_take_names_of_their_own(tmp_path: pathlib.Path) -> None:
    both = [files_in(tmp_path), files_in(tmp_path)]
    for files in both:
        files.append(b"line\n")
        files.close()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_or_folder_that_was_removed_is_made_anew(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "hashes"
    files = files_in(folder)
    files.append(b"lost\n")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    files.append(b"kept\n")
    files.close()
    assert [path.read_text() for path in folder.iterdir()] == ["kept\n"]
    assert files.num_files == 1


def test_a_folder_that_cannot_be_made(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lookups are counted all the same; the log tells once; once repaired, lines are written."""
    (tmp_path / "hashes").write_text("a file stands in the way")
    strategy = FileHash(files_in(tmp_path / "hashes" / "deeper"))
    with caplog.at_level(logging.WARNING):
        assert [strategy.count(f"r{number}", 1.0, "", DIGESTS) for number in range(3)] == [2, 2, 2]
    assert len(caplog.records) == 1
    assert strategy.figures()["failed_writes"] == 3
    (tmp_path / "hashes").unlink()
    strategy.count("r9", 1.0, "", DIGESTS)
    strategy.close()
    assert [line["lookup_id"] for line in lines_of(tmp_path / "hashes" / "deeper")] == ["r9"]


@pytest.mark.skipif(not os.geteuid(), reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written_to(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "hashes"
    folder.mkdir(mode=0o500)
    strategy = FileHash(files_in(folder))
    assert strategy.count("r1", 1.0, "", DIGESTS) == 2
    assert strategy.figures()["failed_writes"] == 1


class FullDisk:
    """Takes half of a line, and no more until there is room again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_room = True
        self._room = 0
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def fill(self, room: int) -> None:
        self.has_room, self._room = False, room

    def write(self, descriptor: int, data: bytes) -> int:
        if self.has_room:
            return self._write(descriptor, data)
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._write(descriptor, data[: self._room])
        self._room -= written
        return written


def test_a_full_disk_leaves_whole_lines(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)
    files = files_in(tmp_path, size_bytes_max=20, num_files_max=2)
    files.append(b"before\n")
    for _ in range(5):
        disk.fill(room=3)
        with pytest.raises(OSError, match="No space"):
            files.append(b"during\n")
    disk.has_room = True
    files.append(b"after\n")
    files.close()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before\nafter\n"]


def test_a_full_disk_costs_no_older_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one empty file is begun, however often writing is tried."""
    disk = FullDisk(monkeypatch)
    files = files_in(tmp_path, size_bytes_max=4, num_files_max=3)
    for line in (b"first\n", b"second\n"):
        files.append(line)
    disk.fill(room=0)
    for _ in range(5):
        with pytest.raises(OSError, match="No space"):
            files.append(b"third\n")
    files.close()
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["first\n", "second\n", ""]
