"""A tier that keeps KV only roughly: what came back from there is never stored as if it had been computed."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.embedded.jobs import RetrieveJob, RetrievePart, StoreJob
from lmcache.testing import paged_memory
from lmcache.testing.paged_memory import BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_BYTES, NUM_LAYERS, PAGE_BYTES
from tests.conftest import new_pool_folder
from tests.embedded import site as sites
from tests.embedded.site import L1_BACKEND, PATIENCE_S, ROOT, Site, blocks_of, config_of, digests_of, opened
from tests.embedded.tiers import DISK, REMOTE, disk, held_by, memory

NAMES = "ab"
ROWS = tuple(blocks_of(place) for place in range(len(NAMES)))
INT8 = {"type": "int8"}
ROUGH = {"serde": [INT8]}


def bfloat16_content(digest: bytes, rank: int) -> np.ndarray:
    values = np.random.default_rng([rank, *digest]).standard_normal(CHUNK_BYTES // 2).astype(np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    return halves.view(np.uint8).reshape(NUM_LAYERS, BLOCKS_PER_CHUNK, PAGE_BYTES)


def bfloat16_layout(num_blocks: int) -> KVLayout:
    names = tuple(f"layer.{number}" for number in range(NUM_LAYERS))
    shape = (num_blocks, 1, BLOCK_SIZE, PAGE_BYTES // BLOCK_SIZE // 2)
    group = KernelGroup(names, PAGE_BYTES, "torch.bfloat16", shape)
    return KVLayout(BLOCK_SIZE, num_blocks, (group,), "NL_X_NB_NH_BS_HS", "none")


@pytest.fixture(autouse=True)
def pages_hold_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lossy serde leaves as it is what it cannot take for values."""
    monkeypatch.setattr(paged_memory, "content_of", bfloat16_content)
    monkeypatch.setattr(sites, "make_layout", bfloat16_layout)


def load(site: Site) -> int:
    """Load all there is; how many bytes are not what was computed."""
    for row in ROWS:
        site.memory.poison(row)
    assert site.lookup(NAMES, wait_s=PATIENCE_S) == len(NAMES)
    parts = [RetrievePart(digest, 0, row) for digest, row in zip(digests_of(NAMES), ROWS, strict=True)]
    assert site.engine.retrieve(RetrieveJob("lookup", ROOT, "", tuple(parts))) == ""
    return site.num_wrong(NAMES, ROWS)


def store(site: Site, num_cached: int) -> int:
    """Store what the pages hold now, the first so many as from the engine's own prefix cache."""
    job = StoreJob(ROOT, "", digests_of(NAMES), ROWS, num_cached=num_cached)
    return len(site.engine.store(job))


def load_roughly(site: Site) -> None:
    """What the pages and L1 hold afterwards came from the lossy tier; the other has nothing."""
    assert site.store(NAMES) == NAMES
    site.wait_until_stored()
    site.clear_l1()
    site.engine.clear([DISK])
    assert load(site) > 0


def test_l1_hands_a_lossy_object_to_no_tier(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(disk(tmp_path), memory(**ROUGH)))) as site:
        load_roughly(site)
        # From now on the disk is all that counts, and what L1 has is handed on to it.
        for name in (L1_BACKEND, REMOTE):
            site.engine.bypass(name, True)
        site.store(NAMES)
        site.wait_until_stored()
        assert held_by(site, DISK) == ""
        assert site.engine.storage.metrics.store_dropped.value("fs", "lossy") == len(NAMES)


def test_pages_that_were_loaded_roughly_are_not_stored(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(disk(tmp_path), memory(**ROUGH)))) as site:
        load_roughly(site)
        site.clear_l1()
        site.engine.clear([REMOTE])
        assert store(site, num_cached=len(NAMES)) == 0
        site.wait_until_stored()
        assert (held_by(site, DISK), site.num_objects) == ("", 0)
        # What the engine computes anew is stored, whatever it loaded before.
        assert site.store(NAMES) == NAMES
        site.wait_until_stored()
        assert held_by(site, DISK) == NAMES
        site.clear_l1()
        site.engine.bypass(REMOTE, True)
        assert load(site) == 0


def test_pages_that_were_loaded_exactly_are_stored(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(disk(tmp_path),))) as site:
        site.store(NAMES)
        site.wait_until_stored()
        site.clear_l1()
        assert load(site) == 0
        site.engine.clear()
        assert store(site, num_cached=len(NAMES)) == len(NAMES)


def test_files_of_a_lossy_tier_carry_the_mark(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    remote: dict[str, object] = dict(type="fs", base_path=str(tmp_path / "remote"), **ROUGH)
    with opened(new_pool_folder(), config_of(backends=(sites.backend(REMOTE, **remote),))) as site:
        site.store(NAMES)
        site.wait_until_stored()
    config = tmp_path / "config.yaml"
    settings = {"remote_storage_plugin.fs.base_path": remote["base_path"], "remote_storage_plugin.fs.serde": [INT8]}
    config.write_text(
        json.dumps({"chunk_size": 16, "remote_storage_plugins": ["fs"], "extra_config": settings})  # which YAML reads
    )
    with opened(pool_folder, config_of(backends=(disk(tmp_path / "disk"),))) as site:
        assert site.engine.load_fs_chunks(str(config), None).num_loaded == len(NAMES)
        assert load(site) > 0
        site.engine.bypass(L1_BACKEND, True)
        site.store(NAMES)
        site.wait_until_stored()
        assert held_by(site, DISK) == ""
