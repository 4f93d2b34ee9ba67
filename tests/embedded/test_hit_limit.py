"""How many hits the client lets through that answers fewer than there are."""

from __future__ import annotations

import dataclasses

import pytest

from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup.hit_limit_client import HitLimitLookupClient
from lmcache.testing.paged_memory import make_layout
from tests.embedded.site import ROOT, digests_of, prompt_of
from tests.embedded.test_lookup_factory import Inner

CHUNK_SIZE = 256


def limited(prompt: Prompt, found: int | None, ratio: float | None) -> int | None:
    inner = Inner()
    inner.found = found
    return HitLimitLookupClient(inner, lambda: ratio, CHUNK_SIZE).lookup("request", prompt)


@pytest.mark.parametrize(
    ("num_tokens", "num_hits", "ratio", "expected"),
    [
        # 818 may be hits, 768 in whole chunks
        (1023, 768, 0.2, 768),
        # 819, of all that are found
        (1024, 1024, 0.2, 768),
        # 767: one less than the three chunks
        (1023, 768, 0.25, 512),
        (1024, 768, 0.25, 768),
        (1023, 768, 0.5, 256),
        (1023, 256, 0.5, 256),
        (511, 256, 0.5, 0),
        (512, 512, 0.5, 256),
        (1023, 768, 0.0, 768),
        (1023, 768, 1.0, 0),
        (1023, 768, None, 768),
    ],
)
def test_share_of_all_tokens_in_whole_chunks(
    num_tokens: int, num_hits: int, ratio: float | None, expected: int
) -> None:
    digests = digests_of("abcdefgh"[: num_tokens // CHUNK_SIZE])
    prompt = Prompt(ROOT, "", digests, num_tokens=num_tokens)
    assert limited(prompt, num_hits // CHUNK_SIZE, ratio) == expected // CHUNK_SIZE


@pytest.mark.parametrize(
    ("found", "ratio", "expected"),
    [
        (10, None, 10), (10, 0.0, 10), (10, 1.0, 0), (0, 0.5, 0), (5, 0.5, 5), (6, 0.5, 5), (10, 0.45, 5),
        (10, 0.9, 1), (10, 0.7, 3), (3, 0.7, 3), (10, 0.999, 0), (None, 0.5, None),
    ],
)  # fmt: skip
def test_share_of_a_prompt_of_whole_chunks(found: int | None, ratio: float | None, expected: int | None) -> None:
    assert limited(prompt_of("abcdefghij"), found, ratio) == expected


def test_last_chunk_that_is_not_whole_is_a_hit_only_without_a_limit() -> None:
    """Of 1023 tokens four chunks are found, the last of which has 255."""
    prompt = Prompt(ROOT, "", digests_of("abcd"), tail_blocks=16, num_tokens=1023)
    assert limited(prompt, 4, 0.0) == 4
    assert limited(prompt, 4, 0.001) == 3
    # The bound is the prompt's, however many of its chunks are asked for.
    assert limited(dataclasses.replace(prompt, num_tokens=5000), 4, 0.001) == 4


def test_all_else_is_passed_on() -> None:
    inner = Inner()
    client = HitLimitLookupClient(inner, lambda: 0.5, CHUNK_SIZE)
    inner.known = [make_layout(3)]
    assert client.layouts() == inner.known
    client.forget("request")
    client.close()
    assert (inner.forgotten, inner.is_closed, client.name()) == (["request"], True, "HitLimitLookupClient(Inner)")
