"""Hits that were promised and cannot be loaded: recomputed or ended, as the policy says, never wrong."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import pytest

from lmcache.testing.vllm_spec import Gate
from tests.vllm_engine.driver import Driver
from tests.vllm_shared.prompts import new_salt, prompt_of, same, worst_error


@pytest.fixture
def with_policy(engine: Driver) -> Iterator[Callable[[bool], None]]:
    """Choose whether vLLM recomputes what could not be loaded."""
    usual = engine.run("result = scheduler.recompute_kv_load_failures")

    def choose(recompute: bool) -> None:
        engine.run("scheduler.recompute_kv_load_failures = recompute", recompute=recompute)

    yield choose
    choose(usual)


def break_load(engine: Driver, step: str, folder: pathlib.Path, prompt: list[int], salt: str) -> None:
    """Start a request whose promised chunks the server clears while a load has reached `step`. Answer with `finish`."""
    gate = Gate(folder, step)
    engine.process.call("watch", gate)
    engine.process.call("add", "broken", prompt, 4, salt)
    engine.process.begin("finish")
    gate.wait_until_held()
    assert engine.server.clear() > 0
    gate.open()


@pytest.mark.parametrize("step", ["load.check", "load.copied"])
def test_cleared_before_the_load_is_recomputed(
    engine: Driver, with_policy: Callable[[bool], None], tmp_path: pathlib.Path, step: str
) -> None:
    with_policy(True)
    prompt, salt = prompt_of(1300, seed=40), new_salt()
    engine.store(prompt[:600], salt, max_tokens=2)
    expected = engine.one(prompt, new_salt())
    engine.process.settle()
    engine.process.forget()
    break_load(engine, step, tmp_path, prompt, salt)
    output = engine.process.answer()["broken"]
    engine.process.call("watch", None)
    assert output.finish_reason == "length"
    assert same(output, expected)
    # Whatever was computed on top of the broken load is not what was saved.
    engine.process.settle()
    engine.process.forget()
    num_cached, pages = engine.pages(prompt, salt)
    assert num_cached == 1280
    assert worst_error(pages, engine.pages(prompt, new_salt())[1]) < 0.1
    assert any("a load failed" in line for line in engine.process.call("log_lines"))


def test_failed_request_is_never_promised_again(
    engine: Driver, with_policy: Callable[[bool], None], tmp_path: pathlib.Path
) -> None:
    """Its chunks are still held, and every load of them fails: one attempt, no loop."""
    with_policy(True)
    prompt, salt = prompt_of(900, seed=41), new_salt()
    engine.store(prompt, salt, max_tokens=4)
    expected = engine.one(prompt, new_salt())
    engine.process.forget()
    engine.run(
        "import itertools\n"
        "transfer = engine._transfer\n"
        "engine.attempts = []\n"
        "engine.copy_in = transfer._copy_in\n"
        "transfer._copy_in = lambda run, chunk: engine.attempts.append(run.job.request_id) or 'broken on purpose'\n"
    )
    output = engine.one(prompt, salt)
    attempts = engine.run(
        "engine._transfer._copy_in = engine.copy_in; result = len(set(engine.attempts)), len(engine.attempts)"
    )
    assert attempts[0] == 1
    assert attempts[1] <= 3
    assert same(output, expected)
    assert engine.hit(prompt, salt).num_cached_tokens == 768


def test_policy_fail_ends_the_request_and_nothing_else(
    engine: Driver, with_policy: Callable[[bool], None], tmp_path: pathlib.Path
) -> None:
    with_policy(False)
    prompt, salt = prompt_of(1300, seed=42), new_salt()
    engine.store(prompt[:600], salt, max_tokens=2)
    break_load(engine, "load.check", tmp_path, prompt, salt)
    output = engine.process.answer()["broken"]
    engine.process.call("watch", None)
    assert output.finish_reason == "error"
    engine.check_nothing_held()
    # The engine goes on, and what it computes now is right.
    num_cached, pages = engine.pages(prompt, salt)
    assert num_cached == 0
    engine.process.settle()
    engine.process.forget()
    assert engine.pages(prompt, salt)[0] == 1280
    assert worst_error(pages, engine.pages(prompt, new_salt())[1]) < 0.1


def test_blocks_shared_with_a_failed_load_are_not_saved(sync_engine: Driver, tmp_path: pathlib.Path) -> None:
    """A synchronous load's blocks are in vLLM's prefix cache before they are read: others compute on them."""
    sync_engine.run("scheduler.recompute_kv_load_failures = True")
    prompt, salt = prompt_of(600, seed=43), new_salt()
    sync_engine.store(prompt, salt, max_tokens=2)
    family = [prompt_of(1100 + 30 * index, seed=44 + index, shared=prompt[:512]) for index in range(3)]
    gate = Gate(tmp_path, "load.check")
    sync_engine.process.call("watch", gate)
    sync_engine.process.begin("generate", family, 3, salts=[salt] * 3)
    gate.wait_until_held()
    sync_engine.server.clear()
    gate.open()
    outputs = sync_engine.process.answer()
    sync_engine.process.call("watch", None)
    assert [output.finish_reason for output in outputs] == ["length"] * 3
    for one in family:
        sync_engine.process.settle()
        sync_engine.process.forget()
        _, pages = sync_engine.pages(one, salt)
        assert worst_error(pages, sync_engine.pages(one, new_salt())[1]) < 0.1
    sync_engine.run("scheduler.recompute_kv_load_failures = False")
    sync_engine.check_nothing_held()
