"""A frozen engine inside a running vLLM: nothing that requests do leaves a trace."""

from __future__ import annotations

import json

import pytest

from tests.vllm_shared.prompts import CHUNK, new_salt, prompt_of, same
from tests.vllm_v1.operators import Operated
from tests.vllm_v1.tiers import object_files
from tests.vllm_v1.traffic import Traffic
from tests.vllm_v1.waiting import wait_until

# What L1 holds, for a script: the engine answers nobody else while it serves.
_HELD = b"""
state = app.state.lmcache_adapter.lmcache_engine.l1._state
result = str([digest.hex() for _, digest, _ in state.ready_slots()])
"""

# Requests are not over before anybody could have frozen anything: from the twentieth store on they wait for it.
_BRAKE = """
import time
engine.num_stores, store = 0, worker.engine.store
def braked(job):
    engine.num_stores += 1
    deadline_s = time.monotonic() + 60
    while engine.num_stores > 20 and not worker.engine.is_frozen and time.monotonic() < deadline_s:
        time.sleep(0.002)
    return store(job)
worker.engine.store = braked
"""


@pytest.mark.parametrize("by_layers", [False, True], ids=["whole steps", "by layers"])
def test_traffic_leaves_no_trace(operated: Operated, by_layers: bool) -> None:
    engine, salt = operated.engine, new_salt()
    operated.worker.set(use_layerwise=by_layers)
    operated.scheduler.set(save_decode_cache=True)
    on_disk, held, other = (prompt_of(700, seed=seed) for seed in (600, 601, 602))
    engine.store(on_disk, salt)
    operated.leave_disk_only()
    engine.store(held, salt)
    engine.store(other, salt)
    files = operated.files()
    assert operated.worker.json("PUT", "/freeze/enable")["freeze"]
    before = operated.l1_order()
    with operated.told() as told:
        hit = engine.hit(held, salt)
        missed = engine.hit(on_disk, salt)
        longer = engine.hit(prompt_of(1300, seed=603, shared=held), salt, max_tokens=300)
        new = engine.hit(prompt_of(900, seed=604), salt)
        engine.process.forget()
        batch = [prompt_of(800 + 10 * index, seed=605 + index, shared=held[:600]) for index in range(4)]
        outputs = engine.process.generate(batch, 2, salts=[salt] * len(batch))
    assert operated.l1_order() == before
    assert operated.files() == files
    assert told == []
    assert [output.num_cached_tokens for output in (hit, missed, longer, new)] == [512, 0, 512, 0]
    assert [output.num_cached_tokens for output in outputs] == [512] * len(batch)
    assert same(hit, engine.prefix_hit(held, 512))
    assert same(missed, engine.prefix_hit(on_disk, 0))
    assert operated.worker.json("GET", "/freeze/status") == {
        "status": "success", "freeze": True, "message": "Freeze mode is enabled",
    }  # fmt: skip


def test_freeze_while_requests_run(operated: Operated) -> None:
    """Whatever was being stored has arrived when the call is answered, or never does."""
    engine, salt = operated.engine, new_salt()
    prompts = [prompt_of(1100, seed=620 + index) for index in range(30)]
    engine.run(_BRAKE)
    with operated.told() as told:
        engine.process.begin("generate", prompts, 4, salts=[salt] * len(prompts))
        wait_until(lambda: bool(object_files(operated.disk)), "something is stored")
        operated.worker.ask("PUT", "/freeze/enable")
        files = object_files(operated.disk)
        outputs = engine.process.answer()
        held = operated.l1_order()[0]
    engine.run("del worker.engine.store")
    assert [len(output.token_ids) for output in outputs] == [4] * len(prompts)
    assert object_files(operated.disk) == files
    assert len(told) == len(held) < 4 * len(prompts)


def test_thaw(operated: Operated) -> None:
    """From then on all is as before."""
    engine, salt = operated.engine, new_salt()
    prompt = prompt_of(700, seed=640)
    engine.store(prompt, salt)
    operated.leave_disk_only()
    operated.worker.ask("PUT", "/freeze/enable")
    assert engine.hit(prompt, salt).num_cached_tokens == 0
    assert not operated.worker.json("PUT", "/freeze/disable")["freeze"]
    with operated.told() as told:
        assert engine.hit(prompt, salt).num_cached_tokens == 512
        engine.store(prompt_of(2 * CHUNK, seed=641), salt)
    assert operated.num_in_l1() == len(operated.files()) == 4
    assert len(told) == 2


@pytest.mark.parametrize("is_async", [False, True], ids=["lookups wait", "lookups answer later"])
def test_nothing_comes_up_from_the_disk(operated: Operated, is_async: bool) -> None:
    """Loads that are under way when the call comes end before it is answered, or leave nothing."""
    engine, worker, salt = operated.engine, operated.worker, new_salt()
    for api in (worker, operated.scheduler):
        api.set(enable_async_loading=is_async)
        api.recreate_lookup()
    prompts = [prompt_of(900, seed=650 + index) for index in range(2)]
    for prompt in prompts:
        engine.store(prompt[:768], salt)
    operated.leave_disk_only()

    def held() -> set[str]:
        return set(json.loads(worker.ask("POST", "/run_script", files={"script": _HELD}).text.replace("'", '"')))

    with Traffic(engine.process, prompts, salt) as traffic:
        for _ in range(3):
            worker.ask("PUT", "/freeze/enable")
            before = held()
            found = traffic.next_round()
            assert held() == before
            assert set(found) <= {0, 256, 512, 768}
            worker.ask("PUT", "/freeze/disable")
            assert traffic.next_round() == [768] * len(prompts)
            worker.ask("DELETE", "/cache/clear?locations=LocalCPUBackend")
    traffic.check_outputs()
