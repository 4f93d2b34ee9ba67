"""What the file system does to the fs adapter: full, read-only, unreadable; and settings that cannot be."""

from __future__ import annotations

import errno
import mmap
import os
import pathlib
import resource
import subprocess
from collections.abc import Iterator

import pytest

from lmcache.errors import BackendError, ConfigError, CorruptObjectError
from lmcache.l2.base import AdapterContext, Source, StoreStatus
from lmcache.l2.fs import Config, make
from lmcache.l2.fs.adapter import FSL2Adapter
from lmcache.testing.l2_backend import Bench, make_data, make_key
from lmcache.testing.l2_fs import FSBackend

MIB = 1 << 20


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Iterator[Bench]:
    bench = Bench(FSBackend(tmp_path))
    yield bench
    bench.adapter.close()


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of 4 MiB of its own."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "lmcache-test", str(mount)]
    if os.geteuid() or subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("mounting is not allowed here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def _path(bench: Bench, number: int) -> pathlib.Path:
    assert isinstance(bench.backend, FSBackend)
    return bench.backend.path(make_key(number))


def _files(base: pathlib.Path) -> list[str]:
    return sorted(path.name for path in base.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_full_disk_is_no_failure(small_disk: pathlib.Path) -> None:
    bench = Bench(FSBackend(small_disk))
    statuses = [bench.store(make_key(number), make_data(number, MIB)) for number in range(6)]
    assert statuses == [StoreStatus.STORED] * 3 + [StoreStatus.NO_ROOM] * 3
    assert len(_files(small_disk)) == 3, "nothing half-written stays"
    assert bench.load(make_key(0), MIB).data == make_data(0, MIB)
    assert bench.adapter.delete([make_key(0)]).deleted == [make_key(0)]
    assert bench.store(make_key(5), make_data(5, MIB)) is StoreStatus.STORED
    assert bench.load(make_key(5), MIB).data == make_data(5, MIB)
    bench.check()
    bench.adapter.close()


def test_a_disk_that_turned_read_only_still_serves(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.store(make_key(1), make_data(1))
    os.utime(_path(bench, 1), (1000, 1000))
    with monkeypatch.context() as patch:
        for call in ("pwritev", "unlink", "utime"):
            patch.setattr(os, call, _refuse)
        assert bench.store(make_key(2), make_data(2)) is StoreStatus.NO_ROOM
        assert bench.load(make_key(1), 4096).data == make_data(1)
        with pytest.raises(BackendError, match="Read-only"):
            bench.adapter.delete([make_key(1)])
    assert bench.is_held(make_key(1)), "what could not be removed is held as before"
    bench.check()
    assert bench.store(make_key(2), make_data(2)) is StoreStatus.STORED


def _refuse(*args: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_read_only_folder_is_refused(small_disk: pathlib.Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ConfigError, match="not writable"):
        make(Config(str(small_disk)), AdapterContext("fs"))


def test_a_file_that_may_not_grow_so_far(bench: Bench, tmp_path: pathlib.Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        status = bench.store(make_key(1), make_data(1, 2 * MIB))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status is StoreStatus.NO_ROOM
    assert _files(tmp_path) == []
    assert bench.store(make_key(1), make_data(1, 2 * MIB)) is StoreStatus.STORED


def test_a_file_that_cannot_be_read_is_a_miss_and_goes(bench: Bench) -> None:
    bench.store(make_key(1), make_data(1))
    _path(bench, 1).unlink()
    _path(bench, 1).symlink_to("/proc/self/mem")  # reading its start is an I/O error
    assert bench.adapter.lookup([make_key(1)]) == [True]
    with pytest.raises(CorruptObjectError, match="cannot be read"):
        bench.load(make_key(1), 4096)
    assert not os.path.lexists(_path(bench, 1))
    assert bench.store(make_key(1), make_data(1)) is StoreStatus.STORED


def test_a_pipe_in_place_of_a_file_blocks_nobody(bench: Bench) -> None:
    bench.store(make_key(1), make_data(1))
    _path(bench, 1).unlink()
    os.mkfifo(_path(bench, 1))
    with pytest.raises(CorruptObjectError, match="not a regular file"):
        bench.load(make_key(1), 4096)
    assert not bench.is_held(make_key(1))


def test_a_damaged_file_with_a_hashed_name_is_removed_at_start(bench: Bench) -> None:
    key = make_key(1, "m" * 300)
    bench.store(key, make_data(1))
    content = bench.backend.content(key)
    assert content is not None
    bench.adapter.close()
    bench.backend.replace(key, content[:100])
    bench.open()
    assert bench.listed() == []
    assert bench.backend.content(key) is None


def test_a_torn_file_of_another_server_is_replaced(bench: Bench) -> None:
    other = bench.make(boot_id=2)
    other.open()
    other.close()
    bench.store(make_key(1), make_data(1))
    content = bench.backend.content(make_key(1))
    assert content is not None
    bench.adapter.delete([make_key(1)])
    bench.backend.replace(make_key(1), content[:5000])
    assert bench.store(make_key(1), make_data(1)) is StoreStatus.STORED
    assert bench.load(make_key(1), 4096).data == make_data(1)


def test_an_error_while_writing_leaves_no_file(bench: Bench, tmp_path: pathlib.Path) -> None:
    adapter = bench.adapter
    assert isinstance(adapter, FSL2Adapter)
    whole = adapter.files._write_all

    def fail(descriptor: int, pieces: list[memoryview]) -> None:
        whole(descriptor, pieces)
        raise OSError(5, "Input/output error")

    adapter.files._write_all = fail  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="Input/output error"):
        bench.store(make_key(1), make_data(1))
    adapter.files._write_all = whole  # type: ignore[method-assign]
    assert _files(tmp_path) == []
    assert bench.store(make_key(1), make_data(1)) is StoreStatus.STORED


def test_o_direct_where_memory_and_sizes_allow_it(tmp_path: pathlib.Path) -> None:
    pool = memoryview(mmap.mmap(-1, MIB))
    direct = Bench(FSBackend(tmp_path, use_odirect=True))
    for number, size in enumerate([4096, 100, MIB]):
        pool[:size] = make_data(number, size)
        assert direct.adapter.store(make_key(number), Source(pool[:size])) is StoreStatus.STORED
        pool[:] = bytes(MIB)
        direct.adapter.load(make_key(number), pool[:size])
        assert bytes(pool[:size]) == make_data(number, size)
    direct.adapter.close()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"base_path": ""}, "base_path"),
        ({"base_path": 7}, "base_path"),
        ({"base_path": "a\0b"}, "NUL"),
        ({"relative_tmp_dir": "/tmp"}, "relative_tmp_dir must lie under base_path"),
        ({"relative_tmp_dir": "../up"}, "relative_tmp_dir must lie under base_path"),
        ({"read_ahead_size": 0}, "read_ahead_size"),
        ({"read_ahead_size": True}, "read_ahead_size"),
        ({"use_odirect": 1}, "use_odirect"),
        ({"num_workers": 0}, "num_workers"),
        ({"max_capacity_gb": -1}, "max_capacity_gb"),
        ({"max_capacity_gb": float("nan")}, "max_capacity_gb"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Config(**{"base_path": "/tmp", **settings})  # type: ignore[arg-type]


def test_a_base_path_that_cannot_be(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        with pytest.raises(ConfigError, match="not a directory"):
            make(Config(str(path)), AdapterContext("fs"))
    with pytest.raises(ConfigError, match="cannot be made"):
        make(Config("/proc/lmcache-test"), AdapterContext("fs"))


def test_a_base_path_that_is_missing_is_made(tmp_path: pathlib.Path) -> None:
    bench = Bench(FSBackend(tmp_path, base_path=str(tmp_path / "a" / "b"), relative_tmp_dir="partial/files"))
    assert (tmp_path / "a" / "b" / "partial" / "files").is_dir()
    bench.store(make_key(1), make_data(1))
    assert bench.load(make_key(1), 4096).data == make_data(1)
    bench.adapter.close()
