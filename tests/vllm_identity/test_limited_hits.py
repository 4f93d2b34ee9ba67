"""What vLLM is offered where a share of every prompt must be a miss: the share counts all tokens of the prompt."""

from __future__ import annotations

import pytest

from lmcache.core.hashing import make_algorithm
from lmcache.embedded.lookup.hit_limit_client import HitLimitLookupClient
from lmcache.testing.paged_memory import BLOCK_SIZE, CHUNK_SIZE
from tests.vllm_identity.scheduler_site import EmbeddedScheduler, Site


def offered(num_chunks: float, ratio: float, **settings: object) -> float:
    """In chunks."""
    site = Site(1, **settings)
    site.client.num_found = 100
    client = HitLimitLookupClient(site.client, lambda: ratio, CHUNK_SIZE)
    site.half = EmbeddedScheduler(
        site.config, client, make_algorithm("blake3"), {"model": "m"}, 1, BLOCK_SIZE, True, True, 1, site._forget,
        site.clock,
    )  # fmt: skip
    tokens = site.admit(site.add("a", num_chunks))
    assert tokens is not None
    return tokens / CHUNK_SIZE


@pytest.mark.parametrize("saves_unfull", [False, True])
def test_tokens_beyond_the_whole_chunks_count(saves_unfull: bool) -> None:
    settings = {"save_unfull_chunk": saves_unfull}
    assert offered(3.75, 0.2, **settings) == 3  # of exactly three chunks that may be hits
    assert offered(3.5, 0.2, **settings) == 2
    assert offered(3.75, 0.5, **settings) == 1


def test_prompt_that_is_all_hits_without_a_limit() -> None:
    assert offered(3.5, 0.0) == 3
