"""Without an engine: what is loaded where, when a load counts as failed, and which settings reach the engine."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.config.engine.loading import load_engine_config
from lmcache.core.hashing import PrefixChain, make_algorithm
from lmcache.embedded.jobs import Prompt
from lmcache.errors import ConfigError
from lmcache.integration.vllm.embedded_settings import (
    check_chunk_size,
    embedded_config,
    lookup_address,
    shares_ranks,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing vLLM warns
    from lmcache.integration.vllm.embedded_loads import plan_parts
    from lmcache.integration.vllm.embedded_tracker import EmbeddedTracker, UnconfirmedLoads
from lmcache.storage.breaker import BreakerConfig


@given(per_chunk=st.integers(1, 8), first=st.integers(0, 40), num_blocks=st.integers(1, 40))
def test_every_block_is_loaded_once_from_its_place(per_chunk: int, first: int, num_blocks: int) -> None:
    block_ids = [1000 + 7 * position for position in range(first + num_blocks)]
    digests = [bytes([index]) for index in range(-(-len(block_ids) // per_chunk))]
    parts = plan_parts(Prompt(b"root", "", tuple(digests)), per_chunk, first, block_ids)
    placed = {
        digests.index(part.digest) * per_chunk + part.first_block + offset: block_id
        for part in parts
        for offset, block_id in enumerate(part.block_ids)
    }
    assert placed == {position: block_ids[position] for position in range(first, len(block_ids))}
    assert sum(len(part.block_ids) for part in parts) == num_blocks
    assert all(part.first_block + len(part.block_ids) <= per_chunk for part in parts)


def test_part_of_a_chunk_that_is_not_whole_tells_how_many_blocks_it_has() -> None:
    prompt = Prompt(b"root", "", (b"a", b"b"), tail_blocks=3)
    whole, unfull = plan_parts(prompt, 4, 1, range(100, 106))
    assert (whole.first_block, whole.block_ids, whole.chunk_blocks) == (1, (101, 102, 103), 0)
    assert (unfull.first_block, unfull.block_ids, unfull.chunk_blocks) == (0, (104, 105), 3)


@dataclass
class FakeRequest:
    request_id: str
    num_computed_tokens: int = 0
    num_preemptions: int = 0


def tracker_of(request: Any) -> EmbeddedTracker:
    extras: Any = None
    return EmbeddedTracker(request, "", extras, PrefixChain(make_algorithm("blake3"), b"root", 256))


@pytest.mark.parametrize("num_steps", [1, 2])
def test_load_is_confirmed_once_vllm_must_know_how_it_went(num_steps: int) -> None:
    loads, request = UnconfirmedLoads(num_steps), FakeRequest("good", num_computed_tokens=600)
    tracker = tracker_of(request)
    tracker.loaded_until = 512
    loads.add(tracker, step=10)
    for step in range(10, 10 + num_steps):
        loads.confirm(step)
        assert (len(loads), loads.take_set_back()) == (1, [])
    loads.confirm(10 + num_steps)
    assert (len(loads), tracker.loaded_until) == (0, 0)
    request.num_computed_tokens = 0  # preempted later on: that says nothing about the load
    assert not tracker.was_set_back


def test_request_that_was_set_back_is_told_once() -> None:
    loads = UnconfirmedLoads(1)
    trackers = [tracker_of(FakeRequest(name, num_computed_tokens=600)) for name in ("failed", "preempted", "good")]
    for tracker in trackers:
        tracker.loaded_until = 512
        loads.add(tracker, step=1)
    trackers[0].request.num_computed_tokens = 128
    trackers[1].request.num_computed_tokens, trackers[1].request.num_preemptions = 0, 1
    assert loads.take_set_back() == trackers[:2]
    assert [tracker.was_preempted for tracker in trackers] == [False, True, False]
    assert loads.take_set_back() == []
    assert len(loads) == 1


def config_of(**settings: object) -> Any:
    return load_engine_config({}, {f"lmcache.{key}": value for key, value in settings.items()})[0]


def test_settings_reach_the_engine() -> None:
    config = config_of(
        chunk_size=512, max_local_cpu_size=2, reserve_local_cpu_size=1, local_cpu=False, cache_policy="lfu",
        pin_timeout_sec=60, pin_check_interval_sec=5, local_disk="/a,file:///b", max_local_disk_size=3,
        remote_url="redis://host:7/2",
    )  # fmt: skip
    found = embedded_config(config, rank=1, stores_for_others=False)
    assert (found.chunk_size, found.pool_bytes, found.reserve_bytes) == (512, 2 << 30, 1 << 30)
    assert (found.keeps_l1, found.eviction_policy) == (False, "LFU")
    assert (found.lock_ttl_s, found.lock_check_interval_s) == (60, 5)
    disk, remote = found.backends
    assert (disk.name, disk.adapter.settings.base_path, disk.adapter.settings.max_capacity_gb) == (
        "LocalDiskBackend", "/b", 3,
    )  # fmt: skip
    assert disk.adapter.eviction is not None
    assert disk.adapter.eviction.eviction_policy == "LFU"
    assert (remote.name, remote.adapter.settings.host, remote.adapter.settings.db) == ("RemoteBackend", "host", 2)


def test_tier_with_a_field_that_it_does_not_have_is_named() -> None:
    extra = {"remote_storage_plugin.fs.base_path": "/x", "remote_storage_plugin.fs.base_pth": "/x"}
    config = config_of(remote_storage_plugins=["fs"], extra_config=extra)
    with pytest.raises(ConfigError, match="RemoteBackend-fs: unknown field 'base_pth'; did you mean 'base_path'"):
        embedded_config(config, rank=0, stores_for_others=False)


def test_only_ranks_that_hold_the_same_share_what_they_store() -> None:
    assert shares_ranks(config_of(), is_mla=True)
    assert not shares_ranks(config_of(), is_mla=False)
    assert not shares_ranks(config_of(extra_config={"save_only_first_rank": False}), is_mla=True)
    with pytest.raises(ConfigError, match="ranks of this model hold different KV"):
        shares_ranks(config_of(extra_config={"save_only_first_rank": True}), is_mla=False)


def test_tiers_that_fail_are_left_alone_as_asked() -> None:
    assert embedded_config(config_of(), rank=0, stores_for_others=False).breaker == BreakerConfig()
    extra = {"get_blocking_failed_threshold": 3, "waiting_time_for_recovery": 20}
    breaker = embedded_config(config_of(extra_config=extra), rank=0, stores_for_others=False).breaker
    assert breaker == BreakerConfig(3, 20, 20)


def test_chunks_are_whole_blocks() -> None:
    check_chunk_size(config_of(chunk_size=256), 16)
    with pytest.raises(ConfigError, match="set chunk_size to 256, or start vLLM with a --block-size that divides 300"):
        check_chunk_size(config_of(chunk_size=300), 128)


def test_lookup_address_follows_the_environment() -> None:
    assert lookup_address("e", {}, {}).folder == "/tmp/vllm_rpc"
    found = lookup_address("e", {"lmcache_rpc_port": 5}, {"VLLM_RPC_BASE_PATH": "/run/rpc"})
    assert str(found.path(1)) == "/run/rpc/engine_e_service_lookup_lmcache_rpc_port_6"
    with pytest.raises(ConfigError, match="lmcache_rpc_port must be a number or a text"):
        lookup_address("e", {"lmcache_rpc_port": [1]}, {})
