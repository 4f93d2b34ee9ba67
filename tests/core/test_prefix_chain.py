"""PrefixChain: growing step by step gives what one pass gives; every input reaches the digests after it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.core.hashing import ALGORITHM_NAMES, PrefixChain, chunk_digests, make_algorithm, tokens_to_bytes
from lmcache.errors import ConfigError

ROOT = bytes(range(32))
ALGORITHMS = [make_algorithm(name) for name in ALGORITHM_NAMES]
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=60)


@given(
    algorithm=st.sampled_from(ALGORITHMS),
    tokens=TOKENS,
    chunk_size=st.integers(1, 7),
    steps=st.lists(st.integers(0, 70), max_size=8),
    extras=st.lists(st.binary(max_size=3), max_size=12),
)
def test_incremental_equals_one_pass(algorithm, tokens, chunk_size, steps, extras) -> None:
    whole = PrefixChain(algorithm, ROOT, chunk_size)
    whole.extend(tokens, extras)
    grown = PrefixChain(algorithm, ROOT, chunk_size)
    for step in sorted(steps):
        grown.extend(tokens[:step], extras)
    grown.extend(tokens, extras)
    assert grown.digests == whole.digests
    assert len(whole.digests) == len(tokens) // chunk_size


@given(
    algorithm=st.sampled_from(ALGORITHMS), tokens=TOKENS, chunk_size=st.integers(1, 7), num_tokens=st.integers(0, 60)
)
def test_num_tokens_hashes_only_so_far(algorithm, tokens, chunk_size, num_tokens) -> None:
    num_tokens = min(num_tokens, len(tokens))
    chain = PrefixChain(algorithm, ROOT, chunk_size)
    chain.extend(tokens, num_tokens=num_tokens)
    assert chain.digests == chunk_digests(algorithm, ROOT, tokens[:num_tokens], chunk_size)


@given(
    algorithm=st.sampled_from(ALGORITHMS),
    tokens=st.lists(st.integers(0, 2**32 - 2), min_size=12, max_size=12),
    at=st.integers(0, 11),
)
def test_a_changed_token_changes_its_chunk_and_all_after_it(algorithm, tokens, at) -> None:
    changed = [*tokens[:at], tokens[at] + 1, *tokens[at + 1 :]]
    before, after = (chunk_digests(algorithm, ROOT, prompt, 3) for prompt in (tokens, changed))
    assert [old == new for old, new in zip(before, after, strict=True)] == [chunk < at // 3 for chunk in range(4)]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=ALGORITHM_NAMES)
def test_a_changed_extra_changes_its_chunk_and_all_after_it(algorithm) -> None:
    plain, tagged = PrefixChain(algorithm, ROOT, 2), PrefixChain(algorithm, ROOT, 2)
    plain.extend(range(6))
    tagged.extend(range(6), [b"", b"lora-1"])
    assert [a == b for a, b in zip(plain.digests, tagged.digests, strict=True)] == [True, False, False]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=ALGORITHM_NAMES)
def test_another_root_shares_no_digest(algorithm) -> None:
    one, other = (set(chunk_digests(algorithm, root, range(40), 4)) for root in (ROOT, bytes(32)))
    assert len(one) == len(other) == 10
    assert not one & other


def test_a_chunk_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        PrefixChain(ALGORITHMS[0], ROOT, 0)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=ALGORITHM_NAMES)
@pytest.mark.parametrize("num_whole", [0, 2])
def test_tail_is_hashed_after_the_whole_chunks_and_leaves_the_chain_alone(algorithm, num_whole) -> None:
    chain = PrefixChain(algorithm, ROOT, 4)
    tokens = list(range(4 * num_whole + 4))
    chain.extend(tokens[: 4 * num_whole])
    before = list(chain.digests)
    tails = [chain.tail_digest(tokens[4 * num_whole :][:length]) for length in (1, 2, 3)]
    assert chain.digests == before
    assert tails[0] == algorithm.next_digest(before[-1] if before else ROOT, tokens_to_bytes([4 * num_whole]), b"")
    assert chain.tail_digest([4 * num_whole], b"lora-1") not in tails
    chain.extend(tokens)
    assert len({*tails, *chain.digests}) == 3 + num_whole + 1
