"""What the worker half counts, whole steps and layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lmcache.embedded.config import EmbeddedConfig
from lmcache.embedded.engine import EmbeddedEngine
from lmcache.embedded.jobs import RetrieveJob, RetrievePart, StoreJob
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.integration.vllm.parallel import ParallelStrategy
from lmcache.telemetry.periodic import PeriodicThreadRegistry
from lmcache.testing.paged_memory import CHUNK_SIZE, NUM_LAYERS, PagedMemory, make_layout
from lmcache.testing.waiting import PATIENCE_S, wait_until
from tests.embedded.site import NUM_BLOCKS, ROOT, blocks_of, config_of, digests_of
from tests.embedded.test_metrics import make, shown
from tests.embedded.tiers import memory

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing vLLM warns
    from lmcache.integration.vllm.embedded_gauges import watch_worker
    from lmcache.integration.vllm.embedded_metadata import EmbeddedMetadata
    from lmcache.integration.vllm.embedded_worker import EmbeddedWorker


class NoLookups:
    """A switch of servers that nobody can ask."""

    def serve(self, target: object) -> None:
        """There is nothing to start."""

    def shut_down(self) -> None:
        """There is nothing to end."""


class Half:
    def __init__(self, is_layerwise: bool, make_config: Callable[[], EmbeddedConfig] = config_of) -> None:
        self.meter: EmbeddedMetrics = make()
        lookups: Any = NoLookups()
        self.worker = EmbeddedWorker(
            "instance", make_config, "model", ParallelStrategy(1, 0, 1, False), lookups,
            PeriodicThreadRegistry(), is_layerwise=lambda: is_layerwise, meter=self.meter,
        )  # fmt: skip
        watch_worker(self.meter, self.worker)
        self.memory = PagedMemory(0, NUM_BLOCKS)

    def register(self) -> EmbeddedEngine:
        self.worker.register(make_layout(NUM_BLOCKS), [self.memory.pages])
        engine = self.worker.engine
        assert engine is not None
        engine.pool.wait_until_populated(PATIENCE_S)
        return engine

    def step(self, loads: str = "", stores: str = "") -> None:
        """As vLLM's model runner: all hooks, around layers that change nothing."""
        meta = EmbeddedMetadata(
            loads=[self._load(loads)] if loads else [], stores=[self._store(stores)] if stores else []
        )
        self.worker.begin(meta)
        self.worker.load(meta)
        for number in range(NUM_LAYERS):
            self.worker.wait_for_layer(f"layer.{number}")
            self.worker.save_layer(f"layer.{number}")
        self.worker.save(meta)

    def _load(self, names: str) -> RetrieveJob:
        parts = [RetrievePart(digest, 0, blocks_of(place)) for place, digest in enumerate(digests_of(names))]
        return RetrieveJob("a", ROOT, "", tuple(parts), len(names) * CHUNK_SIZE - 1)

    def _store(self, names: str) -> StoreJob:
        rows = tuple(blocks_of(place) for place in range(len(names)))
        return StoreJob(ROOT, "", digests_of(names), rows, num_tokens=len(names) * CHUNK_SIZE)


@pytest.fixture(params=[False, True], ids=["whole", "layerwise"])
def half(request: pytest.FixtureRequest) -> Iterator[Half]:
    half = Half(request.param)
    yield half
    half.worker.close()


def test_loads_and_stores_are_counted(half: Half) -> None:
    assert shown(half.meter)["connector_kv_caches_count"] == 0
    half.register()
    half.step()
    half.step(stores="ab")
    half.step(stores="abc")
    half.step(loads="abc")
    found = shown(half.meter)
    assert found["num_store_requests_total"] == 2
    assert found["num_stored_tokens_total"] == 3 * CHUNK_SIZE
    assert found["num_retrieve_requests_total"] == 1
    assert found["num_requested_tokens_total"] == found["num_hit_tokens_total"] == 3 * CHUNK_SIZE - 1
    assert found["time_to_retrieve_sum"] > 0
    assert found["active_memory_objs_count"] == 3
    assert found["connector_kv_caches_count"] == NUM_LAYERS
    assert found["connector_layerwise_retrievers_count"] == 0


def test_loads_that_failed_hit_nothing(half: Half) -> None:
    half.register()
    half.step(loads="ab")
    found = shown(half.meter)
    assert found["num_retrieve_requests_total"] == 1
    assert found["num_requested_tokens_total"] == 2 * CHUNK_SIZE - 1
    assert found["num_hit_tokens_total"] == 0
    assert found["retrieve_hit_rate"] == 0
    assert found["connector_invalid_block_ids_count"] == len(half.worker.take_bad_block_ids()) > 0
    assert shown(half.meter)["connector_invalid_block_ids_count"] == 0


@pytest.mark.parametrize("is_layerwise", [False, True])
def test_a_load_that_a_pool_cannot_hold_at_once_is_loaded_all_the_same(is_layerwise: bool) -> None:
    half = Half(is_layerwise, lambda: config_of(4, backends=(memory(),)))
    engine = half.register()
    for names in ("abc", "def"):
        half.step(stores=names)
        assert engine.storage.stores.wait_until_empty(PATIENCE_S)
    half.step(loads="abcdef")
    assert half.worker.take_bad_block_ids() == set()
    assert shown(half.meter)["num_hit_tokens_total"] == 6 * CHUNK_SIZE - 1
    half.step(loads="abcx")
    assert half.worker.take_bad_block_ids() == {block_id for place in range(4) for block_id in blocks_of(place)}
    wait_until(lambda: engine.l1.report()["read_locked_count"] == 0)  # the fetch has answered before it lets go
    half.worker.close()
