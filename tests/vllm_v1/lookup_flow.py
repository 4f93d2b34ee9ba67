"""The flow that document 002 prints for changing lookups at run time, on a vLLM that serves requests meanwhile."""

from __future__ import annotations

from tests.vllm_v1.operators import Api
from tests.vllm_v1.traffic import Traffic

SYNC, ASYNC, BYPASS = "LMCacheLookupClient", "LMCacheAsyncLookupClient", "LMCacheBypassLookupClient"
NO_ENGINE = "LMCache engine not configured."


def limited(name: str) -> str:
    return f"HitLimitLookupClient({name})"


def check_flow(scheduler: Api, worker: Api, traffic: Traffic, num_held: list[int], num_limited: list[int]) -> None:
    """Both ways. `num_held`: cached tokens of each prompt of the traffic, and with half of it a miss at least."""
    assert traffic.next_round() == num_held
    worker.set(enable_async_loading=True)
    assert worker.recreate_lookup() == ("LMCacheLookupServer", "LMCacheAsyncLookupServer")
    scheduler.set(enable_scheduler_bypass_lookup=True, hit_miss_ratio=0.5)
    assert scheduler.recreate_lookup() == (SYNC, limited(BYPASS))
    assert scheduler.json("GET", "/lookup/info") == {
        "client": limited(BYPASS), "server": "None", "role": "scheduler",
    }  # fmt: skip
    assert traffic.next_round() == num_limited

    # Tiers alone are asked, by an engine of the scheduler's own.
    assert scheduler.json("GET", "/bypass/list") == {
        "status": "success", "bypassed_backends": [], "all_backends": ["LocalDiskBackend"],
    }  # fmt: skip
    scheduler.set(hit_miss_ratio=0)
    worker.ask("DELETE", "/cache/clear?locations=LocalCPUBackend")
    assert traffic.next_round() == num_held
    worker.ask("DELETE", "/cache/clear?locations=LocalCPUBackend")
    assert traffic.next_round() == num_held
    scheduler.ask("PUT", "/bypass/add?backend_name=LocalDiskBackend")
    assert traffic.next_round() == [0] * len(num_held)
    scheduler.ask("PUT", "/bypass/remove?backend_name=LocalDiskBackend")
    assert traffic.next_round() == num_held

    # Workers still answer asynchronously, so that is what the scheduler asks for on its way back.
    scheduler.set(enable_scheduler_bypass_lookup=False, enable_async_loading=True, hit_miss_ratio=None)
    assert scheduler.recreate_lookup() == (limited(BYPASS), ASYNC)
    assert scheduler.json("GET", "/bypass/list", 503)["message"] == NO_ENGINE
    assert traffic.next_round() == num_held
    worker.set(enable_async_loading=False)
    assert worker.recreate_lookup() == ("LMCacheAsyncLookupServer", "LMCacheLookupServer")
    scheduler.set(enable_async_loading=False)
    assert scheduler.recreate_lookup() == (ASYNC, SYNC)
    assert traffic.next_round() == num_held
