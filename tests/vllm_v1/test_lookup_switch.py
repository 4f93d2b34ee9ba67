"""Lookup clients and servers of a running vLLM are changed under traffic: no request hangs, every answer is right."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vllm_shared.prompts import new_salt, prompt_of
from tests.vllm_v1.lookup_flow import BYPASS, SYNC, check_flow, limited
from tests.vllm_v1.operators import Operated
from tests.vllm_v1.traffic import Traffic
from tests.vllm_v1.waiting import wait_until

PROMPTS = [prompt_of(700, seed=900), prompt_of(1100, seed=901)]
HELD, HALF = [512, 1024], [256, 512]

# A rank whose tiers do not answer until they may.
_HANG = """
import time
def hang(lookup_id, prompt, wait_s):
    began.touch()
    deadline_s = time.monotonic() + wait_s
    while not may_end.exists() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return 0
worker.lookup = hang
"""


@pytest.fixture
def traffic(operated: Operated) -> Iterator[Traffic]:
    salt = new_salt()
    for prompt, num_held in zip(PROMPTS, HELD, strict=True):
        operated.engine.store(prompt[:num_held], salt)
    operated.files()
    with Traffic(operated.engine.process, PROMPTS, salt) as found:
        yield found
    found.check_outputs()


def test_documented_flow_both_ways(operated: Operated, traffic: Traffic) -> None:
    check_flow(operated.scheduler, operated.worker, traffic, HELD, HALF)


def test_dry_run_disturbs_nothing(operated: Operated, traffic: Traffic) -> None:
    scheduler, worker = operated.scheduler, operated.worker
    scheduler.set(enable_scheduler_bypass_lookup=True, hit_miss_ratio=0.5)
    worker.set(enable_async_loading=True)
    for _ in range(20):
        assert scheduler.json("POST", "/lookup/create?dryrun=true") == {
            "new": limited(BYPASS), "dryrun": True, "role": "scheduler",
        }  # fmt: skip
        assert worker.json("POST", "/lookup/create?dryrun=true") == {
            "new": "LMCacheAsyncLookupServer", "dryrun": True, "role": "worker",
        }  # fmt: skip
    assert traffic.next_round() == HELD
    assert (scheduler.lookup_name(), worker.lookup_name()) == (SYNC, "LMCacheLookupServer")
    scheduler.json("GET", "/bypass/list", 503)


def test_close_and_create(operated: Operated, traffic: Traffic) -> None:
    """Lookups miss meanwhile, whichever side has none."""
    for api, name in ((operated.scheduler, SYNC), (operated.worker, "LMCacheLookupServer")):
        assert api.json("POST", "/lookup/close")["old"] == name
        assert api.lookup_name() == "None"
        assert traffic.next_round() == [0, 0]
        assert api.json("POST", "/lookup/create")["new"] == name
        assert traffic.next_round() == HELD


def test_recreated_time_and_again(operated: Operated, traffic: Traffic) -> None:
    for number in range(15):
        operated.scheduler.set(enable_async_loading=number % 2 == 0)
        operated.worker.set(enable_async_loading=number % 2 == 0)
        operated.worker.recreate_lookup()
        operated.scheduler.recreate_lookup()
    assert traffic.next_round() == HELD


def test_settings_that_forbid_a_client_leave_the_old_one(operated: Operated, traffic: Traffic) -> None:
    operated.scheduler.set(lookup_server_worker_ids=[3])
    refused = operated.scheduler.json("POST", "/lookup/recreate", 400)
    assert refused["role"] == "scheduler"
    assert "there is no rank 3" in refused["error"]
    assert operated.scheduler.lookup_name() == SYNC
    assert traffic.next_round() == HELD


def test_chunks_are_counted_once_a_client_counts(operated: Operated) -> None:
    scheduler, salt = operated.scheduler, new_salt()
    scheduler.set(enable_chunk_statistics=True)
    scheduler.recreate_lookup()
    assert scheduler.lookup_name() == f"ChunkStatisticsLookupClient({SYNC})"
    scheduler.ask("POST", "/chunk_statistics/start")
    for _ in range(2):
        operated.engine.hit(PROMPTS[0], salt, max_tokens=1)
    scheduler.ask("POST", "/chunk_statistics/stop")
    operated.engine.hit(PROMPTS[1], salt, max_tokens=1)

    def status_now() -> dict[str, Any]:
        found: dict[str, Any] = scheduler.json("GET", "/chunk_statistics/status")
        return found

    wait_until(lambda: status_now()["async_queue"]["current_size"] == 0, "all lookups are counted")
    status = status_now()
    assert not status["is_collecting"]
    assert (status["total_requests"], status["total_chunks"], status["unique_chunks"]) == (2, 6, 3)
    scheduler.ask("POST", "/metrics/reset")  # what was rendered a moment ago is not told again
    assert scheduler.metric("chunk_statistics_unique_chunks") == 3
    scheduler.ask("POST", "/chunk_statistics/reset")
    assert scheduler.json("GET", "/chunk_statistics/status")["total_chunks"] == 0


def test_engine_of_the_scheduler(operated: Operated) -> None:
    """It has the tiers of all ranks, follows its settings, and neither pool nor pages."""
    engine, scheduler, salt = operated.engine, operated.scheduler, new_salt()
    scheduler.set(enable_scheduler_bypass_lookup=True)
    assert scheduler.recreate_lookup() == (SYNC, BYPASS)
    engine.store(PROMPTS[0], salt)
    operated.leave_disk_only()
    assert engine.hit(PROMPTS[0], salt).num_cached_tokens == 512
    scheduler.set(max_local_disk_size=0)
    assert scheduler.json("GET", "/backends") == {}
    assert engine.hit(PROMPTS[0], salt).num_cached_tokens == 0
    scheduler.set(max_local_disk_size=1.0)
    assert list(scheduler.json("GET", "/backends")) == ["LocalDiskBackend"]
    assert engine.hit(PROMPTS[0], salt).num_cached_tokens == 512
    scheduler.ask("PUT", "/freeze/enable")
    assert engine.hit(PROMPTS[0], salt).num_cached_tokens == 0
    scheduler.ask("PUT", "/freeze/disable")
    refused = scheduler.json("POST", "/cache/store?tokens_mock=0,256", 500)
    assert (refused["error"], "Traceback" in refused["message"]) == ("Failed to store cache", False)
    assert not scheduler.json("GET", "/hot_cache/status")["hot_cache"]
    scheduler.json("GET", "/cache/kvcache/info", 404)
    assert scheduler.json("DELETE", "/cache/clear")["num_removed"] == 2
    assert not operated.files()
    scheduler.set(enable_scheduler_bypass_lookup=False)
    assert scheduler.recreate_lookup() == (BYPASS, SYNC)


def test_lookup_that_takes_its_time_holds_up_no_operator(operated: Operated, tmp_path: pathlib.Path) -> None:
    """Both halves answer meanwhile; what is put in its place waits for it, and works."""
    engine, scheduler, worker, salt = operated.engine, operated.scheduler, operated.worker, new_salt()
    engine.store(PROMPTS[0][:512], salt)
    engine.process.forget()
    began, may_end = tmp_path / "began", tmp_path / "may end"
    engine.run(_HANG, began=began, may_end=may_end)
    try:
        engine.process.begin("generate", [PROMPTS[0]], 4, salts=[salt])
        wait_until(began.exists, "the rank is asked")
        for api in (scheduler, worker):
            assert api.json("POST", "/lookup/create?dryrun=true")["dryrun"]
            assert api.lookup_name() != "None"
        assert worker.recreate_lookup() == ("LMCacheLookupServer", "LMCacheLookupServer")
        threading.Timer(0.2, may_end.touch).start()  # as a rule, after the change that waits for it has come
        assert scheduler.recreate_lookup() == (SYNC, SYNC)
        (missed,) = engine.process.answer()
    finally:
        engine.run("del worker.lookup")
    assert missed.num_cached_tokens == 0
    wait_until(lambda: engine.hit(PROMPTS[0], salt).num_cached_tokens == 512, "the rank is asked again")
