"""Metrics of a running vLLM in the in-process mode, as Prometheus reads them: each counts what requests did."""

from __future__ import annotations

import pathlib

from lmcache.embedded.metric_names import COUNTERS, HISTOGRAMS
from tests.vllm_shared.prompts import new_salt, prompt_of
from tests.vllm_v1.operators import Operated

CHUNK_BYTES = 256 * 2048
PROMPT = prompt_of(700, seed=1100)


def reset(operated: Operated) -> None:
    """What was rendered before is not shown again either."""
    for api in (operated.scheduler, operated.worker):
        assert api.ask("POST", "/metrics/reset").text == "ok"


def test_what_requests_did(operated: Operated, tmp_path: pathlib.Path) -> None:
    engine, scheduler, worker, salt = operated.engine, operated.scheduler, operated.worker, new_salt()
    worker.set(remote_url=f"fs://{tmp_path}")
    reset(operated)
    engine.store(PROMPT, salt)  # a miss
    operated.files()
    engine.hit(PROMPT, salt, max_tokens=1)
    engine.one(PROMPT, salt, max_tokens=1)  # vLLM's own: 640 of its tokens
    worker.ask("DELETE", "/cache/clear?locations=LocalCPUBackend&locations=LocalDiskBackend")
    engine.hit(PROMPT, salt, max_tokens=1)  # from the remote tier
    operated.files()

    def counted(names: str, of: object) -> dict[str, float]:
        return {name: of.metric(f"{name}_total") for name in names.split()}  # type: ignore[attr-defined]

    assert counted("num_prompt_tokens num_lookup_requests num_lookup_tokens num_lookup_hits lookup_0_hit_requests "
                   "num_vllm_hit_tokens", scheduler) == {
        "num_prompt_tokens": 4 * 700, "num_lookup_requests": 4, "num_lookup_tokens": 4 * 512,
        "num_lookup_hits": 3 * 512, "lookup_0_hit_requests": 1, "num_vllm_hit_tokens": 640,
    }  # fmt: skip
    assert counted("num_store_requests num_stored_tokens num_retrieve_requests num_requested_tokens num_hit_tokens "
                   "num_remote_write_requests num_remote_read_requests num_remote_read_bytes", worker) == {
        "num_store_requests": 1, "num_stored_tokens": 512, "num_retrieve_requests": 2, "num_requested_tokens": 1024,
        "num_hit_tokens": 1024, "num_remote_write_requests": 2, "num_remote_read_requests": 2,
        "num_remote_read_bytes": 2 * CHUNK_BYTES,
    }  # fmt: skip
    assert worker.metric("num_remote_write_bytes_total") >= 2 * CHUNK_BYTES
    assert 0 < scheduler.metric("lookup_hit_rate") < 1
    assert (worker.metric("local_cache_usage"), worker.metric("local_cpu_hot_cache_count")) == (2 * CHUNK_BYTES, 2)
    assert worker.metric("remote_cache_usage") >= 2 * CHUNK_BYTES
    assert (worker.metric("connector_kv_caches_count"), worker.metric("lmcache_is_healthy")) == (4, 1)
    assert scheduler.metric("scheduler_unfinished_requests_count") == 0
    for api, names in (
        (scheduler, ("time_to_lookup", "request_cache_hit_rate")),
        (worker, ("time_to_store", "time_to_retrieve", "retrieve_speed", "store_speed", "store_from_gpu_time",
                  "retrieve_to_gpu_time", "store_put_time", "remote_time_to_get", "remote_time_to_put")),
    ):  # fmt: skip
        assert all(api.metric(f"{name}_count") > 0 for name in names), names


def test_labels_and_reset(operated: Operated) -> None:
    """Counters and histograms of both halves begin anew, with the same series; gauges go on telling the present."""
    operated.engine.store(PROMPT, new_salt())
    operated.files()
    reset(operated)
    model = operated.engine.run("result = scheduler.vllm_config.model_config.model")
    for api, role in ((operated.scheduler, "scheduler"), (operated.worker, "worker")):
        assert [name for name in COUNTERS if api.metric(f"{name}_total")] == []
        assert [name for name in HISTOGRAMS if api.metric(f"{name}_count")] == []
        labels = f'{{model_name="{model}",role="{role}",served_model_name="{model}",worker_id="0"}}'
        found = next(
            line
            for line in api.ask("GET", "/metrics").text.splitlines()
            if line.startswith("lmcache:num_prompt_tokens_")
        )
        assert sorted(found.split("{")[1].split("}")[0].split(",")) == sorted(labels[1:-1].split(","))
    assert operated.worker.metric("local_cpu_hot_cache_count") == 2
    assert operated.worker.metric("local_storage_usage") >= 2 * CHUNK_BYTES


def test_objects_that_l1_evicts(operated: Operated) -> None:
    """Its pool has room for 256 chunks: some go for stores, and then for what comes from the disk."""
    worker, salt = operated.worker, new_salt()
    operated.engine.store(PROMPT, salt)
    operated.leave_disk_only()
    worker.set(store_location="LocalCPUBackend")
    reset(operated)
    for start in range(0, 270, 27):
        worker.ask("POST", f"/cache/store?tokens_mock={start},{start + 27 * 256}")
    assert operated.num_in_l1() == 256
    assert operated.engine.hit(PROMPT, salt, max_tokens=1).num_cached_tokens == 512
    assert worker.metric("local_cpu_evict_keys_count_total") == 14 + 2
