"""A reader of a folder: finds what others store, and leaves everything as it is."""

from __future__ import annotations

import pathlib

import pytest

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, CorruptObjectError
from lmcache.l2.base import AdapterContext, Source, StoreStatus
from lmcache.l2.fs.adapter import FSL2Adapter
from lmcache.l2.fs.config import FSConfig

KEYS = [ObjectKey(bytes([number]) * 32, "m", 0x01000100) for number in range(4)]
DATA = b"x" * 5000


def opened(folder: pathlib.Path, is_reader: bool) -> FSL2Adapter:
    adapter = FSL2Adapter(FSConfig(str(folder)), AdapterContext("fs", is_reader=is_reader, boot_id=7))
    adapter.open()
    return adapter


def put(adapter: FSL2Adapter, key: ObjectKey) -> StoreStatus:
    return adapter.store(key, Source(memoryview(DATA)))


def paths(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.rglob("*"))


def test_it_finds_what_others_store_and_misses_what_they_remove(tmp_path: pathlib.Path) -> None:
    writer, reader = opened(tmp_path, False), opened(tmp_path, True)
    put(writer, KEYS[0])
    assert reader.lookup(KEYS[:2]) == [True, False]
    target = memoryview(bytearray(len(DATA)))
    reader.load(KEYS[0], target)
    assert bytes(target) == DATA
    writer.delete(KEYS[:1])
    assert reader.lookup(KEYS[:1]) == [False]
    reader.close()
    writer.close()


def test_it_changes_nothing(tmp_path: pathlib.Path) -> None:
    writer = opened(tmp_path, False)
    for key in KEYS[:2]:
        put(writer, key)
    (tmp_path / ".lmcache" / "tmp" / "0000000000000001-0.1.tmp").write_bytes(b"left by a dead one")
    writer.close()
    damaged = next(tmp_path.rglob("*.data"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = paths(tmp_path)
    reader = opened(tmp_path, True)
    assert put(reader, KEYS[2]) is StoreStatus.NO_ROOM
    assert reader.evict(1 << 30, 10) == (0, 0)
    reader.tick()
    for key in KEYS[:2]:
        if damaged.name.split("@")[3].startswith(key.chunk_hash.hex()):
            with pytest.raises(CorruptObjectError):
                reader.load_whole(key)
    reader.close()
    assert paths(tmp_path) == before


def test_it_is_not_counted_and_does_not_evict_for_others(tmp_path: pathlib.Path) -> None:
    reader, writer = opened(tmp_path / "new", False), None
    reader.close()
    reader = opened(tmp_path / "new", True)
    writer = opened(tmp_path / "new", False)
    assert writer.folder.is_evictor
    writer.tick()
    assert writer.report_status()["other_server_count"] == 0
    writer.close()
    reader.close()


def test_it_deletes_on_request(tmp_path: pathlib.Path) -> None:
    writer, reader = opened(tmp_path, False), opened(tmp_path, True)
    put(writer, KEYS[0])
    reader.tick()
    assert reader.delete(KEYS[:1]).deleted == KEYS[:1]
    assert writer.lookup(KEYS[1:2]) == [False]
    assert not list(tmp_path.rglob("*.data"))
    reader.close()
    writer.close()


def test_a_folder_that_is_not_there_is_not_made(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendError, match="is not a directory"):
        opened(tmp_path / "none", True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("is_persistent", [True, False])
def test_its_end_removes_nothing(tmp_path: pathlib.Path, is_persistent: bool) -> None:
    """Also where a writer's clean end would: others write there still."""
    writer = opened(tmp_path, False)
    put(writer, KEYS[0])
    reader = FSL2Adapter(FSConfig(str(tmp_path)), AdapterContext("fs", is_persistent=is_persistent, is_reader=True))
    reader.open()
    assert reader.lookup(KEYS[:1]) == [True]
    reader.close()
    assert writer.lookup(KEYS[:1]) == [True]
    writer.load(KEYS[0], memoryview(bytearray(len(DATA))))
    writer.close()
