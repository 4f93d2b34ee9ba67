"""Identity roots: whatever could change the KV changes the root, and nothing else does."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.core.hashing import ALGORITHM_NAMES, ChunkHashAlgorithm, make_algorithm
from lmcache.core.identity import canonical_bytes, make_root
from lmcache.core.layout import KernelGroup, KVLayout

FACTS: dict[str, object] = {
    "model": "org/m",
    "revision": "main",
    "quantization": None,
    "hf_overrides": {"rope_scaling": {"factor": 2.0, "type": "linear"}},
    "weights": ["a.safetensors", 17],
    "seed": 0,
}
GROUP = KernelGroup(("layer.0", "layer.1"), 4096, "bfloat16", (10, 8, 16, 128), "CPU_ATTN")
LAYOUT = KVLayout(16, 10, (GROUP,), "NL_X_NB_NH_BS_HS", "avx512")
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(params=ALGORITHM_NAMES)
def algorithm(request: pytest.FixtureRequest) -> ChunkHashAlgorithm:
    return make_algorithm(request.param)


@pytest.mark.parametrize("name", FACTS)
def test_every_fact_changes_the_root(algorithm: ChunkHashAlgorithm, name: str) -> None:
    plain = make_root(algorithm, FACTS, [LAYOUT], 256)
    assert make_root(algorithm, {**FACTS, name: "something else"}, [LAYOUT], 256) != plain
    assert make_root(algorithm, {key: FACTS[key] for key in FACTS if key != name}, [LAYOUT], 256) != plain


def test_a_fact_deep_inside_changes_the_root(algorithm: ChunkHashAlgorithm) -> None:
    scaled = {**FACTS, "hf_overrides": {"rope_scaling": {"factor": 4.0, "type": "linear"}}}
    assert make_root(algorithm, scaled, [LAYOUT], 256) != make_root(algorithm, FACTS, [LAYOUT], 256)


@pytest.mark.parametrize(
    "change",
    [
        {"block_size": 32},
        {"format_name": "NL_X_NB_BS_NH_HS"},
        {"packing": "avx2"},
        {"is_mla": True},
        {"groups": (GROUP, GROUP)},
        {"groups": (dataclasses.replace(GROUP, layer_names=("layer.1", "layer.0")),)},
        {"groups": (dataclasses.replace(GROUP, page_bytes=8192),)},
        {"groups": (dataclasses.replace(GROUP, dtype="float16"),)},
        {"groups": (dataclasses.replace(GROUP, shape=(10, 16, 8, 128)),)},
    ],
)
def test_every_field_of_a_layout_changes_the_root(algorithm: ChunkHashAlgorithm, change: dict[str, object]) -> None:
    other = dataclasses.replace(LAYOUT, **change)
    assert make_root(algorithm, FACTS, [other], 256) != make_root(algorithm, FACTS, [LAYOUT], 256)


def test_the_number_of_blocks_does_not_change_the_root(algorithm: ChunkHashAlgorithm) -> None:
    group = dataclasses.replace(GROUP, shape=(99, *GROUP.shape[1:]))
    larger = dataclasses.replace(LAYOUT, num_blocks=99, groups=(group,))
    assert make_root(algorithm, FACTS, [larger], 256) == make_root(algorithm, FACTS, [LAYOUT], 256)


def test_chunk_size_epoch_number_and_order_of_ranks_change_the_root(algorithm: ChunkHashAlgorithm) -> None:
    other = dataclasses.replace(LAYOUT, packing="avx2")
    roots = [
        make_root(algorithm, FACTS, [LAYOUT], 256),
        make_root(algorithm, FACTS, [LAYOUT], 512),
        make_root(algorithm, FACTS, [LAYOUT], 256, b"\x01"),
        make_root(algorithm, FACTS, [LAYOUT], 256, b"\x02"),
        make_root(algorithm, FACTS, [LAYOUT, LAYOUT], 256),
        make_root(algorithm, FACTS, [LAYOUT, other], 256),
        make_root(algorithm, FACTS, [other, LAYOUT], 256),
        algorithm.none_hash(),
    ]
    assert len(set(roots)) == len(roots)


def test_the_order_in_which_facts_were_gathered_does_not_matter(algorithm: ChunkHashAlgorithm) -> None:
    backwards = dict(reversed(FACTS.items()))
    assert make_root(algorithm, backwards, [LAYOUT], 256) == make_root(algorithm, FACTS, [LAYOUT], 256)


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_canonical_bytes_do_not_depend_on_order(facts: dict[str, object]) -> None:
    assert canonical_bytes(dict(reversed(facts.items()))) == canonical_bytes(facts)


@given(one=PLAIN, other=PLAIN)
def test_canonical_bytes_are_equal_only_for_equal_values(one: object, other: object) -> None:
    if canonical_bytes(one) == canonical_bytes(other):
        assert one == other


def test_a_value_without_one_spelling_is_refused() -> None:
    with pytest.raises(ValueError):
        canonical_bytes({"factor": float("nan")})
