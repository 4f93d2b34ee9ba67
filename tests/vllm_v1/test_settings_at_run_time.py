"""`POST /conf` to a running vLLM: what is asked for shows with the next request."""

from __future__ import annotations

import pathlib

import pytest

from tests.vllm_shared.prompts import CHUNK, new_salt, prompt_of, same
from tests.vllm_v1.operators import Operated
from tests.vllm_v1.tiers import object_files
from tests.vllm_v1.waiting import wait_until

PROMPT = prompt_of(700, seed=800)


def num_cached(operated: Operated, salt: str, prompt: list[int] = PROMPT) -> int:
    return operated.engine.hit(prompt, salt, max_tokens=1).num_cached_tokens


def test_min_retrieve_tokens(operated: Operated) -> None:
    salt = new_salt()
    operated.engine.store(PROMPT, salt)
    operated.scheduler.set(min_retrieve_tokens=513)
    assert num_cached(operated, salt) == 0
    operated.scheduler.set(min_retrieve_tokens=512)
    assert num_cached(operated, salt) == 512


def test_save_decode_cache(operated: Operated) -> None:
    """Chunks that end in the answer are stored from then on, of requests that run as well."""
    engine, prompt = operated.engine, prompt_of(300, seed=801)
    for is_on, num_stored in ((False, CHUNK), (True, 3 * CHUNK)):
        salt = new_salt()
        operated.scheduler.set(save_decode_cache=is_on)
        first = engine.store(prompt, salt, max_tokens=470)
        assert num_cached(operated, salt, [*prompt, *first.token_ids, 5, 6, 7]) == num_stored


def test_save_unfull_chunk(operated: Operated) -> None:
    salt = new_salt()
    operated.scheduler.set(save_unfull_chunk=True)
    operated.engine.store(PROMPT, salt)
    assert num_cached(operated, salt) == 699
    assert len(operated.files()) == 3


def test_local_cpu(operated: Operated) -> None:
    salt = new_salt()
    operated.engine.store(PROMPT, salt)
    operated.files()
    operated.worker.set(local_cpu=False)
    assert operated.num_in_l1() == 0
    assert not operated.worker.json("GET", "/hot_cache/status")["hot_cache"]
    assert num_cached(operated, salt) == 512
    assert operated.num_in_l1() == 0
    operated.worker.set(local_cpu="true")
    assert num_cached(operated, salt) == 512
    assert operated.num_in_l1() == 2


def test_cache_policy(operated: Operated) -> None:
    """What L1 holds stays; the order of eviction is the other one. The disk tier has it too, and its files."""
    salt = new_salt()
    operated.engine.store(PROMPT, salt)
    operated.engine.store(prompt_of(600, seed=802), salt)
    files = operated.files()
    order = operated.l1_order()[1]
    operated.worker.set(cache_policy="MRU")
    assert operated.l1_order()[1] == order[::-1]
    assert operated.files() == files
    operated.leave_disk_only()
    assert num_cached(operated, salt) == 512


def test_locations_of_retrieves(operated: Operated) -> None:
    salt = new_salt()
    operated.engine.store(PROMPT, salt)
    operated.files()
    operated.worker.ask("DELETE", "/cache/clear?locations=LocalDiskBackend")
    operated.worker.set(retrieve_locations=["LocalDiskBackend"])
    assert num_cached(operated, salt) == 0
    operated.worker.set(retrieve_locations="LocalCPUBackend")
    assert num_cached(operated, salt) == 512
    operated.worker.set(retrieve_locations=None)
    assert num_cached(operated, salt) == 512


@pytest.mark.parametrize(
    ("location", "num_in_l1", "num_files"), [("LocalDiskBackend", 0, 2), ("LocalCPUBackend", 2, 0)]
)
def test_location_of_stores(operated: Operated, location: str, num_in_l1: int, num_files: int) -> None:
    salt = new_salt()
    operated.worker.set(store_location=location)
    operated.engine.store(PROMPT, salt)
    assert len(operated.files()) == num_files
    assert operated.num_in_l1() == num_in_l1
    assert num_cached(operated, salt) == 512


def test_disk_tier_elsewhere(operated: Operated, tmp_path: pathlib.Path) -> None:
    salt, other = new_salt(), new_salt()
    operated.engine.store(PROMPT, salt)
    operated.files()
    operated.worker.set(local_disk=f"file://{tmp_path}")
    operated.engine.store(PROMPT, other)
    assert len(operated.files()) == len(object_files(tmp_path)) == 2
    operated.worker.set(max_local_disk_size=0)
    assert list(operated.worker.json("GET", "/backends")) == ["LocalCPUBackend"]
    operated.worker.ask("DELETE", "/cache/clear")
    operated.worker.set(max_local_disk_size="1.0")
    assert list(operated.worker.json("GET", "/backends")) == ["LocalCPUBackend", "LocalDiskBackend"]
    assert num_cached(operated, salt) == 0
    assert num_cached(operated, other) == 512
    operated.worker.ask("DELETE", "/cache/clear")
    operated.worker.set(local_disk=str(operated.disk))
    assert num_cached(operated, salt) == 512


def test_remote_tier_appears(operated: Operated, tmp_path: pathlib.Path) -> None:
    """Beside the disk; what it has is found after everything else is gone, and it is counted as remote."""
    worker, salt = operated.worker, new_salt()
    worker.set(remote_url=f"fs://{tmp_path}")
    assert worker.json("GET", "/bypass/list")["all_backends"] == [
        "LocalCPUBackend", "LocalDiskBackend", "RemoteBackend",
    ]  # fmt: skip
    operated.engine.store(PROMPT, salt)
    assert operated.files() == object_files(tmp_path)
    worker.ask("DELETE", "/cache/clear?locations=LocalCPUBackend&locations=LocalDiskBackend")
    hit = operated.engine.hit(PROMPT, salt)
    assert hit.num_cached_tokens == 512
    assert same(hit, operated.engine.prefix_hit(PROMPT, 512))
    worker.ask("POST", "/backends/RemoteBackend/recreate")
    worker.ask("DELETE", "/cache/clear?locations=LocalCPUBackend&locations=LocalDiskBackend")
    assert num_cached(operated, salt) == 512
    worker.set(remote_url=None)
    assert "RemoteBackend" not in worker.json("GET", "/backends")


def test_events(operated: Operated) -> None:
    operated.scheduler.set(enable_kv_events=False)
    with operated.told() as told:
        operated.engine.store(PROMPT, new_salt())
    assert told == []
    operated.scheduler.set(enable_kv_events=True)
    with operated.told() as told:
        operated.engine.store(PROMPT, new_salt())
    assert told == [PROMPT[:CHUNK], PROMPT[CHUNK : 2 * CHUNK]]


def test_lookup_timeout(operated: Operated) -> None:
    """A rank that does not answer is given up after the time that is set now."""
    engine, salt = operated.engine, new_salt()
    cold = engine.store(PROMPT, salt, max_tokens=4)
    operated.scheduler.set(lookup_timeout_ms=100)
    engine.run(
        "import threading\n"
        "engine.may_answer = threading.Event()\n"
        "worker.lookup = lambda *prompt: engine.may_answer.wait(60) and 0\n"
        # It is asked over its socket, as a rank in another process is.
        "from lmcache.embedded.lookup import here\n"
        "engine.offers, here._targets = here._targets, {}\n"
    )
    try:
        missed = engine.hit(PROMPT, salt)
    finally:
        engine.run(
            "from lmcache.embedded.lookup import here\n"
            "here._targets = engine.offers\n"
            "engine.may_answer.set(); del worker.lookup"
        )
    assert missed.num_cached_tokens == 0
    assert same(missed, cold)
    assert any("did not answer within 0.1 s" in line for line in engine.log_lines())
    operated.scheduler.set(lookup_timeout_ms=3000)
    wait_until(lambda: num_cached(operated, salt) == 512, "the rank is asked again")


def test_load_time(operated: Operated) -> None:
    """What takes part in a load follows too."""
    operated.worker.set(blocking_timeout_secs=7, pin_timeout_sec=77, pin_check_interval_sec=3)
    found = operated.engine.run("result = worker.engine.config.blocking_timeout_s, worker.engine.locks.ttl_s")
    assert found == (7, 77)
    assert operated.worker.json("GET", "/periodic-threads/PinMonitor-thread")["interval"] == 3
