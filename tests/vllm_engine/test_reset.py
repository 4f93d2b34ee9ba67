"""reset_cache: what was stored before is never this engine's KV again."""

from __future__ import annotations

import pathlib

import pytest

from lmcache.testing.vllm_models import TINY_LLAMA, write_model, write_weights
from lmcache.testing.vllm_spec import Gate
from lmcache.testing.waiting import wait_until
from tests.vllm_engine.cache_server import CacheServer
from tests.vllm_engine.driver import Driver
from tests.vllm_shared.prompts import new_salt, prompt_of, same

HOLD_COPY = """
gather = engine._transfer._copier.gather
def held(*arguments):
    gate.reached("store.copy")
    return gather(*arguments)
engine._transfer._copier.gather = held
"""
IS_COMPUTED = "any(request.num_computed_tokens for request in scheduler.requests.values())"


@pytest.fixture
def engine(lonely_engine: Driver, lonely_server: CacheServer) -> Driver:
    if not lonely_server.is_running:
        lonely_server.start()
    lonely_engine.wait_until_joined()
    return lonely_engine


def reset(engine: Driver) -> None:
    engine.process.settle()
    assert engine.process.call("reset_with_connector") is True
    engine.wait_until_joined()


def test_old_keys_are_gone_for_good(engine: Driver) -> None:
    prompt, salt = prompt_of(1000, seed=140), new_salt()
    engine.store(prompt[:768], salt)
    assert engine.hit(prompt, salt).num_cached_tokens == 768
    engine.process.settle()
    roots = engine.server.roots()
    reset(engine)
    assert set(engine.server.roots()).isdisjoint(roots)
    assert engine.one(prompt, salt).num_cached_tokens == 0
    old = f"result = engine.pool.l1.has_root(bytes.fromhex('{roots[0]}'))"
    wait_until(lambda: not engine.server.run(old))
    engine.store(prompt[:768], salt)
    hit = engine.hit(prompt, salt)
    assert hit.num_cached_tokens == 768
    assert same(hit, engine.prefix_hit(prompt, 768))
    engine.check_nothing_held()


def test_two_resets_in_a_row(engine: Driver) -> None:
    prompt, salt = prompt_of(600, seed=141), new_salt()
    engine.store(prompt, salt)
    reset(engine)
    reset(engine)
    assert engine.one(prompt, salt).num_cached_tokens == 0
    engine.check_nothing_held()


def test_save_under_way_is_not_found_afterwards(engine: Driver, tmp_path: pathlib.Path) -> None:
    """Granted before the reset, committed after it: hidden."""
    prompt, salt = prompt_of(600, seed=142), new_salt()
    gate = Gate(tmp_path, "store.copy")
    engine.run(HOLD_COPY, gate=gate)
    engine.one(prompt, salt)
    gate.wait_until_held()
    # Blocks are held by the save, so vLLM says that it could not forget; we do nevertheless.
    assert engine.process.call("reset_with_connector") is False
    gate.open()
    engine.run("del engine._transfer._copier.gather")
    engine.wait_until_joined()
    assert engine.hit(prompt, salt).num_cached_tokens == 0
    engine.check_nothing_held()


def test_running_requests_are_not_saved_under_the_new_root(engine: Driver) -> None:
    """Half of such a request may be of the old state."""
    prompt, salt = prompt_of(1900, seed=143), new_salt()
    reset(engine)
    engine.process.call("add", "running", prompt, 60, salt)
    engine.step_until(IS_COMPUTED, "its first tokens are computed")
    assert engine.run("result = all(not request.num_output_tokens for request in scheduler.requests.values())")
    assert engine.process.call("reset_with_connector") is False  # its blocks are in use
    engine.wait_until_joined()
    engine.process.call("finish")
    assert engine.hit(prompt, salt).num_cached_tokens == 0
    engine.check_nothing_held()


def test_preempted_by_the_reset_and_resumed(engine: Driver) -> None:
    """reset_running_requests: vLLM computes them again from nothing, beside our fresh root."""
    prompt, salt = prompt_of(900, seed=144), new_salt()
    engine.store(prompt[:768], salt)
    engine.process.call("add", "running", prompt, 300, salt)
    # Neither loads nor saves under way: vLLM could not start anew.
    is_decoding = "all(request.num_output_tokens for request in scheduler.requests.values())"
    engine.step_until(f"{is_decoding} and not scheduler.connector.has_pending_push_work()", "it only decodes")
    assert engine.run("result = len(scheduler.requests)") == 1
    assert engine.run("result = scheduler.reset_prefix_cache(reset_running_requests=True, reset_connector=True)")
    finished = engine.process.call("finish")
    assert len(finished["running"].token_ids) == 300
    engine.check_nothing_held()


def test_answer_to_a_lookup_from_before_the_reset_is_not_used(engine: Driver) -> None:
    prompt, salt = prompt_of(900, seed=145), new_salt()
    engine.store(prompt[:768], salt)
    engine.run(
        "lookups = scheduler.connector._scheduler._lookups\n"
        "def ask_only(request_id, salt, digests, wait_s):\n"
        "    lookups._asked.get(request_id) or lookups._ask(request_id, salt, digests)\n"
        "lookups.lookup = ask_only"
    )
    engine.process.call("add", "asked", prompt, 4, salt)
    engine.process.call("step", 2)
    assert engine.run("result = len(scheduler.connector._scheduler._lookups._asked)") == 1
    assert engine.process.call("reset_with_connector") is True
    engine.run("del scheduler.connector._scheduler._lookups.lookup")
    engine.wait_until_joined()
    assert engine.process.call("finish")["asked"].num_cached_tokens == 0
    engine.check_nothing_held()


def is_anything_stored(engine: Driver) -> bool:
    """Under the engine's present root."""
    (root,) = engine.server.roots()
    return bool(engine.server.run(f"result = engine.pool.l1.has_root(bytes.fromhex('{root}'))"))


def check_saves_again(engine: Driver, prompt: list[int], salt: str) -> None:
    engine.store(prompt[:768], salt)
    hit = engine.hit(prompt, salt)
    assert hit.num_cached_tokens == 768
    assert same(hit, engine.prefix_hit(prompt, 768))
    assert is_anything_stored(engine)
    engine.check_nothing_held()


def test_nothing_is_saved_until_a_reset_succeeds(engine: Driver) -> None:
    """vLLM could not follow: what it computes now may stand on KV of before."""
    prompt, salt = prompt_of(1900, seed=146), new_salt()
    engine.process.call("add", "running", prompt, 60, salt)
    engine.step_until(IS_COMPUTED, "its first tokens are computed")
    assert engine.process.call("reset_with_connector") is False
    engine.wait_until_joined()
    follower = prompt_of(1000, seed=147, shared=prompt[:512])
    engine.process.call("add", "follower", follower, 4, salt)
    finished = engine.process.call("finish")
    assert finished["follower"].num_cached_tokens == 512, "it does not stand on KV of before: the test shows nothing"
    assert len(finished["running"].token_ids) == 60
    # Nor what has nothing to do with it: vLLM was not made to forget.
    other, other_salt = prompt_of(1000, seed=148), new_salt()
    computed = engine.store(other, other_salt, max_tokens=4)
    assert not is_anything_stored(engine)
    again = engine.hit(other, other_salt)
    assert again.num_cached_tokens == 0
    assert same(again, computed)
    reset(engine)
    check_saves_again(engine, follower, salt)


@pytest.mark.parametrize("level", [1, 2])
def test_sleep(engine: Driver, tmp_path: pathlib.Path, level: int) -> None:
    """It stands for whatever may happen to weights and pages meanwhile; here, other weights are loaded.

    vLLM on CPU takes the calls and keeps its memory as it is.
    """
    prompt, salt = prompt_of(1000, seed=149), new_salt()
    engine.store(prompt[:768], salt)
    before = engine.hit(prompt, salt)
    assert before.num_cached_tokens == 768
    engine.process.settle()
    engine.run("llm.sleep(level)\nassert llm.llm_engine.is_sleeping()", level=level)
    folder = write_model(tmp_path / "model", TINY_LLAMA)
    write_weights(folder, TINY_LLAMA, seed=20 + level)
    engine.run("llm.collective_rpc('reload_weights', kwargs={'weights_path': path})", path=str(folder))
    engine.run("llm.wake_up()\nassert not llm.llm_engine.is_sleeping()")
    engine.wait_until_joined()
    after = engine.one(prompt, salt)
    assert after.num_cached_tokens == 0
    assert after.token_ids != before.token_ids, "the weights are the same: the test shows nothing"
    check_saves_again(engine, prompt, salt)


def test_pause_of_the_scheduler_alone(engine: Driver) -> None:
    """Nothing changes but that time passes: what was stored is still right."""
    prompt, salt = prompt_of(1000, seed=150), new_salt()
    engine.store(prompt[:768], salt)
    engine.run("llm.sleep(0)")
    engine.process.call("add", "waiting", prompt, 4, salt)
    engine.process.call("step", 5)
    engine.run("llm.wake_up(tags=['scheduling'])")
    hit = engine.process.call("finish")["waiting"]
    assert hit.num_cached_tokens == 768
    assert same(hit, engine.prefix_hit(prompt, 768))
    engine.check_nothing_held()


def test_sleep_that_fails(engine: Driver, tmp_path: pathlib.Path) -> None:
    """A save holds blocks, so vLLM refuses to sleep. It does not tell us, and changed nothing."""
    prompt, salt = prompt_of(1000, seed=151), new_salt()
    gate = Gate(tmp_path, "store.copy")
    engine.run(HOLD_COPY, gate=gate)
    try:
        engine.one(prompt[:768], salt)
        gate.wait_until_held()
        with pytest.raises(RuntimeError, match="Failed to reset KV cache"):
            engine.run("llm.sleep(1)")
    finally:
        gate.open()
        engine.run("del engine._transfer._copier.gather")
    engine.run("llm.wake_up()")
    engine.process.settle()
    hit = engine.hit(prompt, salt)
    assert hit.num_cached_tokens == 768
    assert same(hit, engine.prefix_hit(prompt, 768))
    engine.process.settle()
    engine.run("llm.sleep(1)\nllm.wake_up()")
    engine.wait_until_joined()
    assert engine.one(prompt, salt).num_cached_tokens == 0
    check_saves_again(engine, prompt, salt)
