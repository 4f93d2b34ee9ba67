"""What interleaving does to a thread and to the pool's pages, as the kernel tells it."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import pathlib
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from lmcache.engine import pool as pool_module
from lmcache.engine.pool import Pool, PoolConfig
from lmcache.memory import numa
from lmcache.memory.numa import interleave_this_thread, online_nodes
from lmcache.memory.pool_files import Geometry, PoolFiles

DEFAULT, INTERLEAVE = 0, 3
_SYSCALLS = {"x86_64": (238, 239), "aarch64": (237, 236)}  # set_mempolicy, get_mempolicy
_MASK_LONGS = 64
_LONG_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Policy:
    mode: int
    nodes: list[int]


def in_a_thread(act: Callable[[], Result]) -> Result:
    """Policies are of threads: what is done in this one leaves no trace."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(act).result()


def system_call(number: int, *arguments: Any) -> int:
    """0, or the error's number."""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.syscall(number, *arguments) else 0


def policy_of_this_thread() -> Policy:
    mode, mask = ctypes.c_int(-1), (ctypes.c_ulong * _MASK_LONGS)()
    number = _SYSCALLS[platform.machine()][1]
    size = ctypes.c_ulong(_MASK_LONGS * _LONG_BITS)
    failed = system_call(number, ctypes.byref(mode), mask, size, ctypes.c_void_p(None), ctypes.c_ulong(0))
    assert not failed, os.strerror(failed)
    nodes = [n for n in range(_MASK_LONGS * _LONG_BITS) if mask[n // _LONG_BITS] >> n % _LONG_BITS & 1]
    return Policy(mode.value, nodes)


@pytest.fixture(autouse=True)
def _kernel_has_policies() -> None:
    """Not compiled in, or closed to this container: that can be told without our code."""
    if platform.machine() not in _SYSCALLS:
        pytest.skip(f"no policies are set on {platform.machine()}")
    number = _SYSCALLS[platform.machine()][0]
    failed = in_a_thread(lambda: system_call(number, DEFAULT, ctypes.c_void_p(None), ctypes.c_ulong(0)))
    if failed in (errno.ENOSYS, errno.EPERM):
        pytest.skip(f"this kernel sets no memory policy: {os.strerror(failed)}")


def test_pages_of_the_thread_go_to_all_nodes_in_turn() -> None:
    nodes = online_nodes()

    def interleave() -> tuple[bool, Policy]:
        return interleave_this_thread(nodes), policy_of_this_thread()

    assert in_a_thread(interleave) == (True, Policy(INTERLEAVE, nodes))


def test_other_threads_keep_their_policy() -> None:
    before = policy_of_this_thread()
    assert in_a_thread(lambda: interleave_this_thread(online_nodes()))
    assert policy_of_this_thread() == before
    assert in_a_thread(policy_of_this_thread) == before


def test_nodes_that_are_not_there_are_refused() -> None:
    absent = max(online_nodes()) + 1
    while pathlib.Path(f"/sys/devices/system/node/node{absent}").exists():
        absent += 1

    def interleave() -> tuple[bool, Policy]:
        return interleave_this_thread([absent]), policy_of_this_thread()

    is_done, policy = in_a_thread(interleave)
    assert not is_done
    assert policy.mode == DEFAULT


@pytest.fixture
def policies(monkeypatch: pytest.MonkeyPatch) -> list[Policy]:
    """Those of the thread that takes the pool's pages, slice after slice."""
    found: list[Policy] = []
    populate = PoolFiles.populate

    def watched(files: PoolFiles, offset: int, length: int) -> None:
        found.append(policy_of_this_thread())
        populate(files, offset, length)

    monkeypatch.setattr(PoolFiles, "populate", watched)
    return found


def fill_a_pool(folder: pathlib.Path, interleave_numa: bool) -> None:
    pool = Pool(PoolConfig(folder, Geometry(1 << 20, 64), interleave_numa=interleave_numa))
    try:
        pool.wait_until_populated(30)
        assert not pool.is_populating
    finally:
        pool.close(keep=False)


def test_pages_of_the_pool_are_taken_under_the_policy(pool_folder: pathlib.Path, policies: list[Policy]) -> None:
    before = policy_of_this_thread()
    fill_a_pool(pool_folder, interleave_numa=True)
    assert policies
    assert all(policy == Policy(INTERLEAVE, online_nodes()) for policy in policies)
    assert policy_of_this_thread() == before


def test_nobody_who_did_not_ask_gets_it(pool_folder: pathlib.Path, policies: list[Policy]) -> None:
    fill_a_pool(pool_folder, interleave_numa=False)
    assert policies
    assert all(policy == policy_of_this_thread() for policy in policies)


def test_a_machine_that_cannot_is_told_so(
    pool_folder: pathlib.Path, policies: list[Policy], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pool comes all the same."""
    monkeypatch.setattr(numa, "_SET_MEMPOLICY", {})
    with caplog.at_level(logging.WARNING, pool_module.__name__):
        fill_a_pool(pool_folder, interleave_numa=True)
    assert [record.getMessage() for record in caplog.records] == [
        "this kernel does not interleave NUMA nodes; the pool follows its default policy"
    ]
    assert all(policy == policy_of_this_thread() for policy in policies)
