"""Locks between real processes: held while stopped, gone with the holder, proof only with a file."""

from __future__ import annotations

import pathlib

import pytest

from lmcache.errors import PoolError
from lmcache.memory.client_lock import (
    ClientLock,
    FileLock,
    is_client_dead,
    is_locked,
    known_client_uids,
    lock_path,
    remove_client_file,
)

UID = 0xABC
_HOLD = """
import pathlib, sys
from lmcache.memory.client_lock import ClientLock
lock = ClientLock(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
print("held", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "clients").mkdir()
    return tmp_path


@pytest.fixture
def holder(folder: pathlib.Path, start_child):
    child = start_child(_HOLD, str(folder), str(UID))
    assert child.read_line() == "held"
    return child


def test_a_lock_of_another_process_shows_and_cannot_be_had(folder: pathlib.Path, holder) -> None:
    path = lock_path(folder, UID)
    assert is_locked(path) is True
    assert not is_client_dead(folder, UID)
    with pytest.raises(BlockingIOError, match="another process"):
        FileLock(path)
    with pytest.raises(PoolError, match="cannot lock the client file"):
        ClientLock(folder, UID)
    assert is_locked(path) is True, "asking and failing take nothing away"


def test_a_released_lock_can_be_had(folder: pathlib.Path, holder) -> None:
    holder.write_line()
    assert holder.read_line() == "released"
    assert is_locked(lock_path(folder, UID)) is False
    FileLock(lock_path(folder, UID)).release()


def test_a_stopped_process_keeps_its_lock(folder: pathlib.Path, holder) -> None:
    holder.stop()
    assert is_locked(lock_path(folder, UID)) is True
    assert not is_client_dead(folder, UID)
    holder.resume()
    assert not is_client_dead(folder, UID)


def test_a_killed_process_is_proven_dead(folder: pathlib.Path, holder) -> None:
    holder.kill()
    assert is_client_dead(folder, UID)
    remove_client_file(folder, UID)
    assert not is_client_dead(folder, UID), "without its file nothing is proven"


def test_a_process_killed_while_stopped_is_proven_dead(folder: pathlib.Path, holder) -> None:
    holder.stop()
    holder.kill()
    assert is_client_dead(folder, UID)


def test_a_missing_file_is_neither_locked_nor_proof_of_death(folder: pathlib.Path) -> None:
    assert is_locked(lock_path(folder, 1)) is None
    assert not is_client_dead(folder, 1)


def test_a_client_notices_that_its_file_was_swept_away(folder: pathlib.Path) -> None:
    lock = ClientLock(folder, UID)
    assert lock.is_reachable()
    remove_client_file(folder, UID)
    assert not lock.is_reachable()
    lock.release()
    assert not lock.is_reachable()


def test_a_client_without_a_pool_folder_is_told_so(tmp_path: pathlib.Path) -> None:
    with pytest.raises(PoolError, match="cannot lock the client file"):
        ClientLock(tmp_path / "absent", UID)


def test_known_clients_are_those_with_a_file_of_the_right_name(folder: pathlib.Path) -> None:
    for uid in (1, 2**64 - 1):
        lock_path(folder, uid).touch()
    (folder / "clients" / "junk.lock").touch()
    (folder / "clients" / "7.txt").touch()
    assert sorted(known_client_uids(folder)) == [1, 2**64 - 1]
    assert known_client_uids(folder / "absent") == []


def test_lock_files_are_private(folder: pathlib.Path) -> None:
    lock = ClientLock(folder, UID)
    assert lock.path.stat().st_mode & 0o777 == 0o600
    lock.release()
