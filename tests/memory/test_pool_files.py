"""Pool files: modes, adoption, other geometries, one owner, and noticing that they were lost."""

from __future__ import annotations

import mmap
import os
import pathlib
import shutil
import stat

import pytest

from lmcache.errors import PoolError, PoolInUseError
from lmcache.memory.pool_files import (
    PAGE_BYTES,
    Geometry,
    PoolAccess,
    PoolFiles,
    decode_header,
    encode_header,
    populated_bytes,
    read_geometry,
)

SMALL = Geometry(16 * PAGE_BYTES, 32)
LARGE = Geometry(32 * PAGE_BYTES, 64)
_OWN = """
import pathlib, sys
from lmcache.memory.pool_files import Geometry, PoolFiles
files = PoolFiles(pathlib.Path(sys.argv[1]), Geometry(16 * 4096, 32))
print(files.pool_id.hex(), flush=True)
sys.stdin.readline()
"""


def mode_of(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_and_close(folder: pathlib.Path, geometry: Geometry = SMALL, access: PoolAccess = PoolAccess()) -> PoolFiles:
    files = PoolFiles(folder, geometry, access)
    files.close(keep=True)
    return files


@pytest.mark.parametrize(
    ("access", "folder_mode", "file_mode"),
    [(PoolAccess(), 0o700, 0o600), (PoolAccess(os.getegid()), 0o2770, 0o660)],
    ids=["owner", "group"],
)
def test_modes(pool_folder: pathlib.Path, access: PoolAccess, folder_mode: int, file_mode: int) -> None:
    before = os.umask(0)
    try:
        open_and_close(pool_folder, access=access)
    finally:
        os.umask(before)
    assert {mode_of(folder) for folder in (pool_folder, pool_folder / "clients")} == {folder_mode}
    files = {path.name: mode_of(path) for path in pool_folder.iterdir() if path.is_file()}
    assert files == dict.fromkeys(("index", "nonce", "owner.lock", "pool"), file_mode)


def test_a_restart_adopts_the_files_but_not_the_nonce(pool_folder: pathlib.Path) -> None:
    first = open_and_close(pool_folder)
    second = open_and_close(pool_folder)
    assert not first.is_adopted
    assert second.is_adopted
    assert (second.pool_id, second.inode) == (first.pool_id, first.inode)
    assert second.nonce != first.nonce
    assert (pool_folder / "nonce").read_bytes() == second.nonce


def test_another_geometry_is_another_file_and_the_old_one_keeps_its_bytes(pool_folder: pathlib.Path) -> None:
    first = PoolFiles(pool_folder, SMALL)
    first.populate(0, SMALL.pool_bytes)
    with (pool_folder / "pool").open("r+b") as file, (pool_folder / "index").open("rb") as old_index:
        reader = mmap.mmap(file.fileno(), SMALL.pool_bytes)
        reader[:4] = b"kept"
        first.close(keep=True)
        second = PoolFiles(pool_folder, LARGE)
        assert not second.is_adopted
        assert second.pool_id != first.pool_id
        assert second.inode != first.inode
        for old, size in ((file, SMALL.pool_bytes), (old_index, SMALL.index_bytes)):
            assert os.fstat(old.fileno()).st_size == size
            assert os.fstat(old.fileno()).st_nlink == 0
        assert reader[:4] == b"kept"
        assert reader[-1] == 0
        reader.close()
    assert (pool_folder / "pool").stat().st_size == LARGE.pool_bytes
    second.close(keep=False)
    assert not pool_folder.exists()


@pytest.mark.parametrize("name", ["index", "pool"])
def test_files_that_are_not_whole_are_made_anew(pool_folder: pathlib.Path, name: str) -> None:
    first = open_and_close(pool_folder)
    content = (pool_folder / name).read_bytes()
    (pool_folder / name).unlink()
    (pool_folder / name).write_bytes(content[:-PAGE_BYTES])
    (pool_folder / "names").write_bytes(b"of the old pool")
    second = open_and_close(pool_folder)
    assert not second.is_adopted
    assert second.pool_id != first.pool_id
    assert not (pool_folder / "names").exists()


def test_a_header_with_a_flipped_byte_is_no_header() -> None:
    header = encode_header(SMALL, bytes(16))
    assert decode_header(header + bytes(100)) == (SMALL, bytes(16))
    for position in range(len(header)):
        broken = bytearray(header)
        broken[position] ^= 1
        assert decode_header(bytes(broken)) is None
    assert decode_header(header[:-1]) is None


def test_a_pool_has_one_owner(pool_folder: pathlib.Path, start_child) -> None:
    owner = start_child(_OWN, str(pool_folder))
    pool_id = bytes.fromhex(owner.read_line())
    inode = (pool_folder / "index").stat().st_ino
    for geometry in (SMALL, LARGE):
        with pytest.raises(PoolInUseError, match="held by another lmcache server"):
            PoolFiles(pool_folder, geometry)
    assert read_geometry(pool_folder) == (SMALL, pool_id)
    assert (pool_folder / "index").stat().st_ino == inode
    owner.kill()
    heir = open_and_close(pool_folder)
    assert heir.is_adopted
    assert heir.pool_id == pool_id


def remove_pool(folder: pathlib.Path) -> None:
    (folder / "pool").unlink()


def remove_index(folder: pathlib.Path) -> None:
    (folder / "index").unlink()


def replace_index(folder: pathlib.Path) -> None:
    shutil.copy(folder / "index", folder / "copy")
    os.replace(folder / "copy", folder / "index")


@pytest.mark.parametrize("remove", [remove_pool, remove_index, replace_index, shutil.rmtree])
def test_files_removed_by_someone_else_are_noticed(pool_folder: pathlib.Path, remove) -> None:
    files = PoolFiles(pool_folder, SMALL)
    assert not files.is_lost()
    remove(pool_folder)
    assert files.is_lost()
    files.close(keep=False)


def test_populate_takes_pages_and_tells_how_far_it_came(pool_folder: pathlib.Path) -> None:
    files = PoolFiles(pool_folder, SMALL)
    assert populated_bytes(files.index) == 0
    assert os.fstat(files.pool_descriptor).st_blocks == 0
    files.populate(0, 4 * PAGE_BYTES)
    assert populated_bytes(files.index) == os.fstat(files.pool_descriptor).st_blocks * 512 == 4 * PAGE_BYTES
    files.close(keep=False)


def test_a_folder_that_is_a_link_is_refused(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pool_folder.symlink_to(tmp_path)
    try:
        with pytest.raises(PoolError, match="belongs to somebody else"):
            PoolFiles(pool_folder, SMALL)
    finally:
        pool_folder.unlink()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(PoolError, match="cannot make the pool folder"):
        PoolFiles(tmp_path / "absent" / "pool", SMALL)


def test_an_index_in_use_is_not_closed_silently(pool_folder: pathlib.Path) -> None:
    files = PoolFiles(pool_folder, SMALL)
    view = memoryview(files.index)
    with pytest.raises(PoolError, match="still in use"):
        files.close(keep=False)
    view.release()
    files.close(keep=False)


def test_geometry_rounds_up_to_pages_and_has_a_least_number_of_records() -> None:
    geometry = Geometry.for_pool(PAGE_BYTES + 1)
    assert geometry.pool_bytes == 2 * PAGE_BYTES
    assert geometry.num_records == 1024
    assert geometry.index_bytes % PAGE_BYTES == 0
    assert Geometry.for_pool(1 << 30).num_records == (1 << 30) // (32 * 1024)
