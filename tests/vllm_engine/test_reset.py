"""reset_cache: what was stored before is never this engine's KV again."""

from __future__ import annotations

import pathlib
import time

import pytest

from lmcache.testing.vllm_spec import Gate
from tests.vllm_engine.cache_server import CacheServer
from tests.vllm_engine.driver import Driver, new_salt, prompt_of, same

HOLD_COPY = """
gather = engine._transfer._copier.gather
def held(*arguments):
    gate.reached("store.copy")
    return gather(*arguments)
engine._transfer._copier.gather = held
"""


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
    deadline = time.monotonic() + 20.0
    old = f"result = engine.pool.l1.has_root(bytes.fromhex('{roots[0]}'))"
    while engine.server.run(old):
        assert time.monotonic() < deadline, "old objects stay"
        time.sleep(0.05)
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
    while not engine.run("result = any(request.num_computed_tokens for request in scheduler.requests.values())"):
        engine.process.call("step")
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
    is_decoding = "result = all(request.num_output_tokens for request in scheduler.requests.values())"
    for _ in range(200):
        engine.process.call("step")
        if engine.run(is_decoding) and not engine.state["num_open_saves"]:
            break
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
    assert engine.process.call("reset_with_connector") is True
    engine.run("del scheduler.connector._scheduler._lookups.lookup")
    engine.wait_until_joined()
    assert engine.process.call("finish")["asked"].num_cached_tokens == 0
    engine.check_nothing_held()
