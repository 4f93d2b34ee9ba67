"""A client's mapping: it takes the very pool the server means, or says what to do."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from lmcache.errors import DeclinedError, PoolError
from lmcache.memory.mapping import PoolMapping, read_nonce
from lmcache.memory.pool_files import PAGE_BYTES, Geometry, PoolFiles

GEOMETRY = Geometry(16 * PAGE_BYTES, 32)


@pytest.fixture
def files(pool_folder: pathlib.Path) -> Iterator[PoolFiles]:
    files = PoolFiles(pool_folder, GEOMETRY)
    files.populate(0, GEOMETRY.pool_bytes)
    yield files
    files.close(keep=False)


def declined_text(folder: pathlib.Path, pool_id: bytes, inode: int) -> str:
    with pytest.raises(DeclinedError) as declined:
        PoolMapping(folder, pool_id, inode)
    return str(declined.value)


def test_both_sides_see_the_same_bytes(files: PoolFiles) -> None:
    mapping = PoolMapping(files.folder, files.pool_id, files.inode)
    assert mapping.geometry == GEOMETRY
    assert len(mapping.bytes) == GEOMETRY.pool_bytes
    mapping.bytes[-3:] = [1, 2, 3]
    with (files.folder / "pool").open("rb") as pool:
        pool.seek(-3, 2)
        assert pool.read() == b"\1\2\3"
    mapping.close()


def test_another_pool_is_declined_with_the_remedy(files: PoolFiles) -> None:
    for pool_id, inode in ((bytes(16), files.inode), (files.pool_id, files.inode + 1)):
        text = declined_text(files.folder, pool_id, inode)
        assert "holds another pool" in text
        for part in (str(files.folder), "docker run --ipc=host", "--l1-group", "volume"):
            assert part in text


def test_an_absent_folder_is_declined_with_the_remedy(tmp_path: pathlib.Path) -> None:
    text = declined_text(tmp_path / "absent", bytes(16), 1)
    assert "cannot open its index" in text
    assert "--ipc=host" in text
    with pytest.raises(DeclinedError, match="cannot read its nonce"):
        read_nonce(tmp_path / "absent")


def test_an_absent_pool_file_is_declined(files: PoolFiles) -> None:
    (files.folder / "pool").unlink()
    assert "cannot open its pool" in declined_text(files.folder, files.pool_id, files.inode)


def test_the_nonce_is_what_the_server_wrote(files: PoolFiles) -> None:
    assert read_nonce(files.folder) == files.nonce


def test_ranges_outside_the_pool_are_not_contained(files: PoolFiles) -> None:
    mapping = PoolMapping(files.folder, files.pool_id, files.inode)
    assert mapping.contains(0, GEOMETRY.pool_bytes)
    assert mapping.contains(GEOMETRY.pool_bytes - 1, 1)
    for offset, length in ((-1, 2), (0, 0), (0, -1), (GEOMETRY.pool_bytes, 1), (1, GEOMETRY.pool_bytes)):
        assert not mapping.contains(offset, length)
    mapping.close()


def test_touching_ahead_ends_when_all_is_mapped_or_when_asked(files: PoolFiles) -> None:
    mapping = PoolMapping(files.folder, files.pool_id, files.inode)
    mapping.touch_ahead(lambda: True)
    mapping.touch_ahead(lambda: False)
    mapping.close()


def test_a_mapping_in_use_is_not_closed_silently(files: PoolFiles) -> None:
    mapping = PoolMapping(files.folder, files.pool_id, files.inode)
    view = mapping.bytes[:4]
    with pytest.raises(PoolError, match="still in use"):
        mapping.close()
    del view
