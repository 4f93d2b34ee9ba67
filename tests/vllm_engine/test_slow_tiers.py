"""Lookups that wait for L2: requests wait, nobody else does, and whatever happens meanwhile, they end."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator

import pytest

from lmcache.testing.vllm_spec import Gate, patient_connector
from lmcache.testing.waiting import wait_until
from tests.vllm_engine.cache_server import CacheServer
from tests.vllm_engine.conftest import running, running_server
from tests.vllm_engine.driver import Driver
from tests.vllm_shared.driver import spec_of
from tests.vllm_shared.prompts import BLOCK, new_salt, prompt_of, same

STEP = "tier.load"
NUM_BLOCKS = 25

HOLD_LOADS = """
import pathlib
from lmcache.testing.vllm_spec import Gate
adapter, gate = engine.storage.tiers()[0].adapter, Gate(pathlib.Path({folder!r}), {step!r})
def held(key, target):
    gate.reached({step!r})
    return type(adapter).load(adapter, key, target)
adapter.load = held
"""
SLOW_LOADS = """
import time
adapter = engine.storage.tiers()[0].adapter
def slow(key, target):
    time.sleep(0.03)
    return type(adapter).load(adapter, key, target)
adapter.load = slow
"""
PLAIN_LOADS = "engine.storage.tiers()[0].adapter.__dict__.pop('load', None)"
IS_IDLE = "result = engine.storage.prefetches.is_at_rest and engine.storage.stores.wait_until_empty(0.0)"
WAITING = "result = [request.request_id for request in scheduler.requests.values() if not request.num_computed_tokens]"


@pytest.fixture(scope="module")
def tier_server() -> Iterator[CacheServer]:
    yield from running_server(adapters=['{"type": "memory", "max_size_gb": 0.25}'])


@pytest.fixture(scope="module")
def tier_engine(tier_server: CacheServer, model_folder: pathlib.Path) -> Iterator[Driver]:
    """Room for 24 blocks. Its server is asked seldom whether it lives: nothing here may depend on that."""
    connector = patient_connector(
        tier_server.port, heartbeat_interval=60.0, save_decode_cache=True, held_blocks_fraction=0.5
    )
    options = {"num_gpu_blocks_override": NUM_BLOCKS, "max_model_len": 2048}
    yield from running(spec_of(model_folder, connector, options=options), tier_server)


@pytest.fixture
def engine(tier_engine: Driver, tier_server: CacheServer) -> Iterator[Driver]:
    """Joined; afterwards nobody waits, and nothing is held."""
    if not tier_server.is_running:
        tier_server.start()
    tier_engine.wait_until_joined()
    yield tier_engine
    if tier_server.is_running:
        tier_server.run(PLAIN_LOADS)
        tier_engine.check_nothing_held()
        wait_until_idle(tier_server)


def wait_until_idle(server: CacheServer) -> None:
    wait_until(lambda: server.run(IS_IDLE))


def holds_nothing_for_requests(server: CacheServer) -> bool:
    report = server.report()
    return not report["read_locked"] and not report["sessions"]


def only_in_l2(engine: Driver, seed: int) -> tuple[list[int], str]:
    """768 tokens of a prompt of 900, in L2 and nowhere else."""
    prompt, salt = prompt_of(900, seed), new_salt()
    engine.store(prompt[:768], salt)
    wait_until_idle(engine.server)
    assert engine.server.clear() >= 3
    return prompt, salt


@pytest.fixture
def gate(engine: Driver, tmp_path: pathlib.Path) -> Iterator[Gate]:
    """Holds what `hold_loads` was called for. Open in the end."""
    found = Gate(tmp_path, STEP)
    yield found
    found.open()


def hold_loads(engine: Driver, folder: pathlib.Path) -> None:
    engine.server.run(HOLD_LOADS.format(folder=str(folder), step=STEP))


def add_and_wait(engine: Driver, gate: Gate, prompt: list[int], salt: str, request_id: str = "waiting") -> None:
    """A request that waits for L2, which is being read."""
    engine.process.call("add", request_id, prompt, 4, salt)
    engine.process.call("step", 2)
    gate.wait_until_held()
    engine.process.call("step", 5)
    assert len(engine.run(WAITING)) == 1


def test_others_are_served_meanwhile(engine: Driver, gate: Gate, tmp_path: pathlib.Path) -> None:
    prompt, salt = only_in_l2(engine, seed=200)
    hold_loads(engine, tmp_path)
    add_and_wait(engine, gate, prompt, salt)
    engine.process.call("add", "other", prompt_of(700, seed=201), 20, new_salt())
    engine.step_until("len(scheduler.requests) == 1", "the other request must end")
    assert len(engine.run(WAITING)) == 1, "and the first one wait on"
    gate.open()
    outputs = engine.process.call("finish")
    assert (outputs["other"].num_cached_tokens, outputs["other"].finish_reason) == (0, "length")
    assert outputs["waiting"].num_cached_tokens == 768
    assert same(outputs["waiting"], engine.prefix_hit(prompt, 768))


@pytest.mark.parametrize("num_steps", [0, 1, 8])
def test_abort_while_waiting(engine: Driver, gate: Gate, tmp_path: pathlib.Path, num_steps: int) -> None:
    """What arrives afterwards is locked by nobody, and there for the next one."""
    prompt, salt = only_in_l2(engine, seed=210 + num_steps)
    hold_loads(engine, tmp_path)
    engine.process.call("add", "aborted", prompt, 4, salt)
    engine.process.call("step", num_steps)
    gate.wait_until_held()  # the hint starts it, before any step
    engine.process.call("abort", "aborted")
    assert engine.one(prompt_of(700, seed=211), new_salt()).finish_reason == "length"
    wait_until(lambda: holds_nothing_for_requests(engine.server))
    wait_until(lambda: engine.server.report()["writing"] == 3)  # its loads are under way
    gate.open()
    wait_until_idle(engine.server)
    engine.check_nothing_held()
    hit = engine.hit(prompt, salt)
    assert hit.num_cached_tokens == 768
    assert same(hit, engine.prefix_hit(prompt, 768))


def test_many_that_wait_and_are_aborted(engine: Driver) -> None:
    prompts = [only_in_l2(engine, seed=220 + index) for index in range(4)]
    engine.server.run(SLOW_LOADS)
    for index in range(40):
        prompt, salt = prompts[index % 4]
        engine.process.call("add", f"many-{index}", prompt, 2, salt)
        engine.process.call("step", index % 4)
        if index % 3:
            engine.process.call("abort", f"many-{index}")
    finished = engine.process.call("finish")
    assert all(f"many-{index}" in finished for index in range(0, 40, 3))
    engine.server.run(PLAIN_LOADS)
    for prompt, salt in prompts:
        engine.process.settle()
        hit = engine.hit(prompt, salt)
        assert hit.num_cached_tokens == 768
        assert same(hit, engine.prefix_hit(prompt, 768))


def test_tier_that_does_not_answer_in_time(engine: Driver, gate: Gate, tmp_path: pathlib.Path) -> None:
    """The request is computed, and the server is no less trusted for it."""
    prompt, salt = only_in_l2(engine, seed=230)
    hold_loads(engine, tmp_path)
    patience = "scheduler.connector._scheduler._lookups._prefetch_wait_s = {}"
    usual_s = engine.run("result = scheduler.connector._scheduler._lookups._prefetch_wait_s")
    engine.run(patience.format(0.4))
    begun_s = time.monotonic()
    missed = engine.hit(prompt, salt)
    assert time.monotonic() - begun_s >= 0.4
    assert missed.num_cached_tokens == 0
    assert engine.state["is_joined"]
    gate.open()
    engine.run(patience.format(usual_s))
    wait_until_idle(engine.server)
    engine.process.settle()
    hit = engine.hit(prompt, salt)
    assert hit.num_cached_tokens == 768


def test_preemption_and_slow_loads(engine: Driver) -> None:
    """Requests that were preempted ask again, and wait again."""
    engine.count_preemptions()
    prompts, salt = [prompt_of(480 + 40 * index, seed=240 + index) for index in range(8)], new_salt()
    for prompt in prompts:
        engine.store(prompt, salt)
    wait_until_idle(engine.server)
    engine.server.clear()
    engine.server.run(SLOW_LOADS)
    outputs = engine.process.generate(prompts, 150, salts=[salt] * len(prompts))
    assert [len(output.token_ids) for output in outputs] == [150] * len(prompts)
    assert all(output.num_cached_tokens for output in outputs)
    assert engine.num_preempted > 0
    for prompt, output in zip(prompts, outputs, strict=True):
        engine.check_pages(prompt + output.token_ids[:BLOCK], salt)


def test_server_dies_while_it_is_waited_for(engine: Driver, gate: Gate, tmp_path: pathlib.Path) -> None:
    """The request is computed at once: nobody waits for an answer that cannot come."""
    prompt, salt = only_in_l2(engine, seed=250)
    computed = engine.prefix_hit(prompt, 0)
    hold_loads(engine, tmp_path)
    engine.process.forget()
    add_and_wait(engine, gate, prompt, salt)
    engine.server.kill()
    begun_s = time.monotonic()
    output = engine.process.call("finish")["waiting"]
    took_s = time.monotonic() - begun_s
    print(f"computed {took_s:.2f} s after the server's death")
    assert output.num_cached_tokens == 0
    assert same(output, computed)
    assert took_s < 40.0, "half of what it may wait for L2"
