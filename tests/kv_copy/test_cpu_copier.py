"""The CPU copier against a naive copy, byte for byte, over any blocks and page sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.errors import DeclinedError
from lmcache.kv_copy.cpu import CpuCopier

NUM_BLOCKS = 12
SHAPES = st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 7, 8, 24, 96 << 10])), min_size=1, max_size=3)


def make_regions(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (layers, NUM_BLOCKS, page), dtype=np.uint8) for layers, page in shapes]


def chunk_of(regions, block_ids):
    return np.concatenate([region[:, list(block_ids)].reshape(-1) for region in regions])


@given(SHAPES, st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=8))
def test_gather_brings_whole_blocks_region_by_region(shapes, block_ids):
    regions = make_regions(shapes)
    copier = CpuCopier(regions)
    slot = np.zeros(len(block_ids) * copier.block_bytes, dtype=np.uint8)
    copier.gather(block_ids, slot)
    assert (slot == chunk_of(regions, block_ids)).all()


@given(SHAPES, st.permutations(range(NUM_BLOCKS)), st.integers(1, 6), st.data())
def test_scatter_writes_the_wanted_blocks_and_no_other(shapes, order, num_in_slot, data):
    source, target = make_regions(shapes, 1), make_regions(shapes, 2)
    slot = chunk_of(source, order[:num_in_slot])
    first = data.draw(st.integers(0, num_in_slot - 1))
    count = data.draw(st.integers(0, num_in_slot - first))
    goals = data.draw(st.permutations(range(NUM_BLOCKS)))[:count]
    expected = [region.copy() for region in target]
    for region, origin in zip(expected, source, strict=True):
        for position, goal in enumerate(goals):
            region[:, goal] = origin[:, order[first + position]]
    CpuCopier(target).scatter(slot, first, goals)
    for region, wanted in zip(target, expected, strict=True):
        assert (region == wanted).all()


@given(SHAPES, st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=8), st.data())
def test_layers_gathered_one_by_one_lie_as_if_gathered_together(shapes, block_ids, data):
    copier = CpuCopier(make_regions(shapes))
    together = np.zeros(len(block_ids) * copier.block_bytes, dtype=np.uint8)
    copier.gather(block_ids, together)
    alone = ~together
    order = data.draw(st.permutations(range(copier.num_layers)))
    assert len(order) == sum(layers for layers, _ in shapes)
    for layer in order[:-1]:
        copier.gather_layer(layer, block_ids, alone)
    assert (alone != together).any()  # one is missing still
    copier.gather_layer(order[-1], block_ids, alone)
    assert (alone == together).all()


@given(SHAPES, st.permutations(range(NUM_BLOCKS)), st.integers(1, 6), st.data())
def test_layer_is_scattered_to_its_own_pages_and_no_other(shapes, order, num_in_slot, data):
    source, whole, target = (make_regions(shapes, seed) for seed in (1, 2, 2))
    slot = chunk_of(source, order[:num_in_slot])
    first = data.draw(st.integers(0, num_in_slot - 1))
    goals = data.draw(st.permutations(range(NUM_BLOCKS)))[: num_in_slot - first]
    CpuCopier(whole).scatter(slot, first, goals)
    copier = CpuCopier(target)
    before, after = ([row for region in regions for row in region] for regions in (make_regions(shapes, 2), whole))
    for layer, row in enumerate(row for region in target for row in region):
        assert (row == before[layer]).all()
        copier.scatter_layer(layer, slot, first, goals)
        assert (row == after[layer]).all()


@pytest.mark.parametrize("start", [0, 3])
def test_neighbouring_blocks_take_the_sliced_path_and_arrive_alike(start):
    regions = make_regions([(3, 64)])
    copier = CpuCopier(regions)
    run = list(range(start, start + 4))
    slot = np.zeros(4 * copier.block_bytes, dtype=np.uint8)
    copier.gather(run, slot)
    target = [np.zeros_like(region) for region in regions]
    CpuCopier(target).scatter(slot, 0, run)
    assert (target[0][:, run] == regions[0][:, run]).all()
    assert not np.delete(target[0], run, axis=1).any()


@pytest.mark.parametrize("block_ids", [[-1], [NUM_BLOCKS], [0, NUM_BLOCKS]])
def test_blocks_outside_the_cache_are_refused(block_ids):
    copier = CpuCopier(make_regions([(1, 8)]))
    slot = np.zeros(len(block_ids) * copier.block_bytes, dtype=np.uint8)
    with pytest.raises(IndexError, match=f"0 to {NUM_BLOCKS - 1}"):
        copier.gather(block_ids, slot)
    with pytest.raises(IndexError, match=f"0 to {NUM_BLOCKS - 1}"):
        copier.scatter(slot, 0, block_ids)


def test_more_blocks_than_the_chunk_holds_are_refused():
    copier = CpuCopier(make_regions([(1, 8)]))
    with pytest.raises(IndexError, match="outside a chunk of 2"):
        copier.scatter(np.zeros(2 * copier.block_bytes, dtype=np.uint8), 1, [4, 5])
    with pytest.raises(IndexError, match="outside a chunk of 2"):
        copier.scatter_layer(0, np.zeros(2 * copier.block_bytes, dtype=np.uint8), 1, [4, 5])


def test_memory_that_is_not_contiguous_is_declined():
    with pytest.raises(DeclinedError, match="contiguous"):
        CpuCopier([np.zeros((2, 4, 16), dtype=np.uint8)[:, ::2]])
