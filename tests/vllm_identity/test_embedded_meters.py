"""What the two halves of vLLM's connector count."""

from __future__ import annotations

import warnings

import pytest

from lmcache.embedded.jobs import StoreJob
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.testing.paged_memory import BLOCK_SIZE, CHUNK_SIZE
from tests.embedded.test_metrics import make, shown

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing vLLM warns
    from lmcache.integration.vllm.embedded_gauges import watch_scheduler
    from lmcache.integration.vllm.embedded_worker import tokens_of
    from tests.vllm_identity.scheduler_site import Site


@pytest.fixture
def meter() -> EmbeddedMetrics:
    return make()


def test_a_prompt_is_counted_once(meter: EmbeddedMetrics) -> None:
    site = Site(1, meter)
    watch_scheduler(meter, site.half)
    site.client.num_found = 2
    request = site.add("a", 3.5)
    assert site.admit(request, num_local=BLOCK_SIZE)
    assert site.half.get_num_new_matched_tokens(request, BLOCK_SIZE)  # asked again, answered from memory
    found = shown(meter)
    assert found["num_prompt_tokens_total"] == request.num_prompt_tokens
    assert found["num_vllm_hit_tokens_total"] == BLOCK_SIZE
    assert found["num_lookup_requests_total"] == 1
    assert found["num_lookup_tokens_total"] == 3 * CHUNK_SIZE
    assert found["num_lookup_hits_total"] == 2 * CHUNK_SIZE
    assert found["lookup_0_hit_requests_total"] == 0
    assert (found["connector_load_specs_count"], found["connector_request_trackers_count"]) == (1, 1)
    site.step(a=(request, 1))
    site.half.request_finished(request)
    found = shown(meter)
    assert (found["connector_load_specs_count"], found["scheduler_unfinished_requests_count"]) == (0, 0)


def test_a_late_answer_is_one_lookup_with_all_its_time(meter: EmbeddedMetrics) -> None:
    site = Site(1, meter)
    site.client.num_found = None
    request = site.add("a", 2)
    for _ in range(3):
        assert site.admit(request) is None
        site.clock.advance(0.25)
    assert shown(meter)["num_lookup_requests_total"] == 0
    site.client.num_found = 0
    assert site.admit(request) == 0
    found = shown(meter)
    assert (found["num_lookup_requests_total"], found["lookup_0_hit_requests_total"]) == (1, 1)
    assert (found["time_to_lookup_count"], found["time_to_lookup_sum"]) == (1, 0.75)


def test_prompts_without_a_chunk_are_not_looked_up(meter: EmbeddedMetrics) -> None:
    site = Site(1, meter)
    assert site.admit(site.add("a", 0.5)) == 0
    found = shown(meter)
    assert found["num_prompt_tokens_total"] == CHUNK_SIZE // 2
    assert found["num_lookup_requests_total"] == 0


@pytest.mark.parametrize(
    ("stored", "num_tokens"), [("", 0), ("a", 64), ("ab", 128), ("c", 20), ("abc", 148), ("bc", 84)]
)
def test_tokens_of_what_was_stored(stored: str, num_tokens: int) -> None:
    """Two chunks of four blocks of 16, and one of 20 tokens in two blocks."""
    rows = ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9))
    job = StoreJob(b"root", "", (b"a", b"b", b"c"), rows, num_tokens=148)
    assert tokens_of(job, {letter.encode() for letter in stored}, 16) == num_tokens
