"""Requests that want the same objects of L2 at the same time: each object is loaded once, for all of them."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator

import pytest

from lmcache.core.keys import ObjectKey
from lmcache.l2.base import Loaded
from lmcache.protocol import messages as m
from tests.engine.tiered import OpenTiered, Tiered, tiered_engines, wait_until

DIGESTS = [bytes([number]) * 32 for number in range(1, 9)]


@pytest.fixture
def open_tiered(pool_folder: pathlib.Path) -> Iterator[OpenTiered]:
    with tiered_engines(pool_folder) as open_:
        yield open_


class HeldLoads:
    """The first tier's loads wait until they are let go; `loaded` tells which began."""

    def __init__(self, tiered: Tiered) -> None:
        self._adapter = tiered.engine.storage.tiers()[0].adapter
        self._load = self._adapter.load
        self._go = threading.Event()
        self.loaded: list[bytes] = []
        self._adapter.load = self._held  # type: ignore[method-assign]

    def _held(self, key: ObjectKey, target: memoryview) -> Loaded:
        self.loaded.append(key.chunk_hash)
        assert self._go.wait(10)
        return self._load(key, target)

    def let_go(self) -> None:
        self._go.set()


def only_in_l2(tiered: Tiered) -> HeldLoads:
    tiered.write(DIGESTS[:4])
    tiered.wait_until_stored(4)
    tiered.engine.clear()
    return HeldLoads(tiered)


def asked(tiered: Tiered, request: str, digests: list[bytes]) -> list[m.Reply]:
    replies: list[m.Reply] = []
    assert tiered.begin(m.Lookup(request, "", b"".join(digests), 8.0), replies) is None
    return replies


def test_several_requests_at_once(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    loads = only_in_l2(tiered)
    prompts = [DIGESTS[:2], [*DIGESTS[:3], DIGESTS[7]], DIGESTS[:4], DIGESTS[:4]]
    replies = [asked(tiered, f"r{number}", prompt) for number, prompt in enumerate(prompts)]
    wait_until(lambda: len(loads.loaded) == 4)
    loads.let_go()
    wait_until(lambda: all(replies))
    for (found,), num_chunks in zip(replies, (2, 3, 4, 4), strict=True):
        assert isinstance(found, m.Found)
        tiered.assert_bytes(found, DIGESTS[:num_chunks])
    assert sorted(loads.loaded) == DIGESTS[:4]
    for number in range(len(prompts)):
        assert tiered.l1_report["total_object_count"] == 4, "those that are left still read it"
        tiered.end(f"r{number}")
    report = tiered.l1_report
    assert (report["total_object_count"], report["read_locked_count"], report["write_locked_count"]) == (0, 0, 0)


def test_the_one_that_loads_is_over_first(open_tiered: OpenTiered) -> None:
    """What it began arrives for those that wait for it."""
    tiered = open_tiered()
    loads = only_in_l2(tiered)
    first, second = asked(tiered, "first", DIGESTS[:4]), asked(tiered, "second", DIGESTS[:4])
    wait_until(lambda: len(loads.loaded) == 4)
    tiered.end("first")
    wait_until(lambda: bool(first))
    loads.let_go()
    wait_until(lambda: bool(second))
    (found,) = second
    assert isinstance(found, m.Found)
    tiered.assert_bytes(found, DIGESTS[:4])
    tiered.end("second")
    wait_until(lambda: not tiered.l1_report["read_locked_count"])


def test_a_load_that_fails_ends_the_prefix_of_all(open_tiered: OpenTiered, caplog: pytest.LogCaptureFixture) -> None:
    tiered = open_tiered()
    loads = only_in_l2(tiered)
    objects = tiered.engine.storage.tiers()[0].adapter._objects  # type: ignore[attr-defined]
    rotten = next(key for key in objects if key.chunk_hash == DIGESTS[2])
    objects[rotten] = objects[rotten][:-1] + bytes([objects[rotten][-1] ^ 1])
    replies = [asked(tiered, request, DIGESTS[:4]) for request in ("first", "second")]
    wait_until(lambda: len(loads.loaded) == 4)
    loads.let_go()
    wait_until(lambda: all(replies))
    for (found,) in replies:
        assert isinstance(found, m.Found)
        tiered.assert_bytes(found, DIGESTS[:2])
    caplog.clear()  # its records keep the error, whose traceback keeps the pool
