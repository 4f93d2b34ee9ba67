"""What the scheduler half has counted of real requests of vLLM: every chunk of a prompt, the last one included."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lmcache.core.hashing import chunk_digests, make_algorithm
from lmcache.embedded.lookup.statistics_client import ChunkStatisticsLookupClient
from lmcache.embedded.statistics.making import make_recorder
from lmcache.testing.paged_memory import BLOCK_SIZE, CHUNK_SIZE
from tests.embedded.statistics.site import counted
from tests.vllm_identity.scheduler_site import EmbeddedScheduler, Site


class CountingSite(Site):
    """Its lookups go through a client that counts."""

    def __init__(self, **settings: object) -> None:
        super().__init__(
            1, enable_chunk_statistics=True, chunk_statistics_auto_start_statistics=True,
            extra_config={"chunk_statistics_mem_bf_expected_chunks": 1000}, **settings,
        )  # fmt: skip
        self.statistics = ChunkStatisticsLookupClient(self.client, make_recorder(self.config))
        self.half = EmbeddedScheduler(
            self.config, self.statistics, make_algorithm("blake3"), {"model": "m"}, 1, BLOCK_SIZE,
            True, True, 1, self._forget, self.clock,
        )  # fmt: skip

    def figures(self) -> tuple[int, int, int]:
        status = counted(self.statistics)
        return status["total_requests"], status["total_chunks"], status["unique_chunks"]


@pytest.fixture(params=[False, True])
def site(request: pytest.FixtureRequest) -> Iterator[CountingSite]:
    """With chunks that are not whole being saved, too, or not."""
    site = CountingSite(save_unfull_chunk=request.param)
    yield site
    site.statistics.close()


def test_whole_and_partial_chunks(site: CountingSite) -> None:
    first = site.add("a", 2.5)
    assert site.admit(first) == 0
    assert site.admit(first) == 0
    assert site.figures() == (1, 3, 3)
    site.admit(site.add("b", 2))
    assert site.figures() == (2, 5, 3)
    site.admit(site.add("c", 2.5))
    assert site.figures() == (3, 8, 3)
    site.admit(site.add("d", 2.75))
    assert site.figures() == (4, 11, 4)


def test_a_prompt_shorter_than_a_chunk(site: CountingSite) -> None:
    for _ in range(2):
        assert site.admit(site.add("a", 0.5)) == 0
    assert site.admit(site.add("b", 0.5)) == 0
    assert site.figures() == (2, 2, 1)


def test_ranks_are_asked_as_they_are_without_counting() -> None:
    """Nothing of the rest of a prompt goes to them, and nothing is prepared where nobody counts."""
    site, plain = CountingSite(), Site(1)
    for each in (site, plain):
        each.admit(each.add("a", 2.5))
        each.admit(each.add("b", 0.5))
    assert site.client.asked == plain.client.asked
    ((_, prompt, _),) = plain.client.asked
    assert prompt.tail is None
    root = plain.half.find_root()
    assert list(prompt.digests) == chunk_digests(
        make_algorithm("blake3"), root, range(int(2.5 * CHUNK_SIZE)), CHUNK_SIZE
    )
    site.statistics.close()


def test_a_rest_that_became_whole_is_no_rest_any_more() -> None:
    """A request counted late, after it was preempted: what it generated is part of its chunks by then."""
    site = CountingSite(save_decode_cache=True)
    site.statistics.stop()
    request = site.add("a", 2.5)
    site.admit(request)
    request.append_output_token_ids(list(range(CHUNK_SIZE)))
    site.statistics.start()
    site.admit(request)
    assert site.figures()[:2] == (1, 3)
    assert site.client.asked[-1][1].digests == tuple(
        chunk_digests(make_algorithm("blake3"), site.half.find_root(), request.all_token_ids, CHUNK_SIZE)
    )
    site.statistics.close()
