"""An embedded engine alone: what it stores it finds and gives back, and what it promised it keeps."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from lmcache.embedded.jobs import RetrieveJob, RetrievePart, StoreJob
from lmcache.errors import KeyFormatError
from lmcache.testing.paged_memory import content_of, digest_of
from tests.conftest import FakeClock
from tests.embedded.site import ROOT, Site, config_of, digests_of, opened


@pytest.fixture
def site(pool_folder: pathlib.Path, clock: FakeClock) -> Iterator[Site]:
    with opened(pool_folder, config_of(8, lock_ttl_s=60.0, lock_check_interval_s=3600.0), clock=clock) as found:
        yield found


def test_what_is_stored_is_found_and_comes_back(site: Site) -> None:
    assert site.store("abc") == "abc"
    assert site.lookup("abcd") == 3
    assert site.retrieve("abc") == ""
    assert site.num_locked == 0


def test_only_leading_chunks_are_found(site: Site) -> None:
    site.store("ac")
    assert site.lookup("abc") == 1
    assert site.lookup("xac") == 0


def test_chunks_that_are_held_are_not_stored_again(site: Site) -> None:
    site.store("ab")
    assert site.store("abc") == "c"
    assert site.num_objects == 3


def test_tenants_do_not_meet(site: Site) -> None:
    site.store("ab", salt="one")
    assert site.lookup("ab", salt="two") == 0
    assert site.store("ab", salt="two") == "ab"
    with pytest.raises(KeyFormatError):
        site.lookup("ab", salt="a@b")


def test_part_of_a_chunk_is_loaded_into_any_blocks(site: Site) -> None:
    site.store("ab")
    site.lookup("ab")
    parts = (RetrievePart(digest_of("a"), 2, (40, 17)), RetrievePart(digest_of("b"), 0, (9,)))
    assert site.engine.retrieve(RetrieveJob("lookup", ROOT, "", parts)) == ""
    assert (site.memory.pages[:, [40, 17]] == content_of(digest_of("a"), 0)[:, 2:4]).all()
    assert (site.memory.pages[:, 9] == content_of(digest_of("b"), 0)[:, 0]).all()
    assert (site.memory.pages[:, [8, 10, 16, 18, 39, 41]] == 0xA5).all()


def test_what_a_lookup_found_is_not_evicted(site: Site) -> None:
    """Eight chunks fit; four of them, and no more, may be held by lookups."""
    site.store("abcd")
    assert site.lookup("abcd") == 4
    assert site.store("efghijkl") == "efgh"
    assert site.retrieve("abcd") == ""
    # Now they may go.
    assert site.store("ijkl") == "ijkl"


def test_lookups_hold_a_bounded_share_of_the_pool(site: Site) -> None:
    site.store("abcdef")
    assert site.lookup("abcdef", "first") == 4
    assert site.lookup("abcdef", "second") == 0
    site.engine.release(["first"])
    assert site.lookup("ef", "second") == 2
    assert site.lookup("abcdef", "first") == 2


def test_asking_again_replaces_what_was_held(site: Site) -> None:
    site.store("abcd")
    for _ in range(3):
        assert site.lookup("abcd") == 4
    assert site.lookup("a") == 1
    assert site.num_locked == 1
    assert site.engine.release(["lookup", "unknown"]) == 1
    assert site.num_locked == 0


def test_what_nobody_asks_for_is_let_go_after_a_while(site: Site, clock: FakeClock) -> None:
    site.store("ab")
    site.lookup("ab", "early")
    clock.advance(40)
    site.lookup("a", "late")
    clock.advance(20)
    assert site.engine.expire_cycle() == {"lookups_expired": 1, "writes_expired": 0}
    assert site.num_locked == 1
    # A load that comes late is served all the same, as long as the chunks are there.
    assert site.retrieve("ab", "early") == ""


def test_a_chunk_that_is_gone_fails_the_load(site: Site) -> None:
    site.store("abc")
    site.lookup("abc")
    assert site.engine.clear(force=False) == 0
    assert site.engine.clear(force=True) == 3
    assert site.retrieve("abc") == "it was evicted or cleared"
    assert len(site.engine.locks) == 0


class ClearOnce:
    """Clears L1 by force while a load has copied a chunk, and checked it not yet."""

    site: Site | None = None

    def reached(self, step: str) -> None:
        if step == "retrieve.copied" and self.site is not None:
            self.site.engine.clear(force=True)


def test_a_chunk_that_was_cleared_while_it_was_read_fails_the_load(pool_folder: pathlib.Path) -> None:
    steps = ClearOnce()
    with opened(pool_folder, config_of(), steps=steps) as site:
        site.store("ab")
        site.lookup("ab")
        steps.site = site
        assert site.retrieve("ab") == "it was cleared while it was read"


def test_pages_that_cannot_be_read_leave_nothing_behind(site: Site) -> None:
    """The first chunk is kept; the slots of the others are free again."""
    rows = ((0, 1, 2, 3), (4, 5, 6, 9999), (8, 9, 10, 11))
    site.memory.fill(digest_of("a"), rows[0])
    with pytest.raises(IndexError):
        site.engine.store(StoreJob(ROOT, "", digests_of("abc"), rows))
    assert site.lookup("abc") == 1
    assert site.retrieve("a") == ""
    assert site.engine.l1.report()["write_locked_count"] == 0
    assert site.store("bc") == "bc"


def test_usage_is_told_by_backend(site: Site) -> None:
    assert site.engine.usage() == {"LocalCPUBackend": 0}
    site.store("ab")
    assert site.engine.usage() == {"LocalCPUBackend": 2 * site.engine.chunk_bytes}


def test_closing_twice_is_closing(pool_folder: pathlib.Path) -> None:
    site = Site(pool_folder, config_of())
    site.store("a")
    site.lookup("a")
    site.engine.close()
    site.engine.close()
    assert not pool_folder.exists()
