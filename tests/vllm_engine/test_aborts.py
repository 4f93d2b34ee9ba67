"""Requests that end before their time: nothing stays behind, and others are served on."""

from __future__ import annotations

import pathlib

import pytest

from lmcache.testing.vllm_spec import Gate
from tests.vllm_engine.driver import Driver
from tests.vllm_shared.prompts import new_salt, prompt_of, same


def stored(engine: Driver, seed: int) -> tuple[list[int], str]:
    prompt, salt = prompt_of(900, seed), new_salt()
    engine.store(prompt[:768], salt)
    return prompt, salt


def check_still_served(engine: Driver, prompt: list[int], salt: str) -> None:
    engine.check_nothing_held()
    hit = engine.hit(prompt, salt)
    assert hit.num_cached_tokens == 768
    assert same(hit, engine.prefix_hit(prompt, 768))


@pytest.mark.parametrize("step", ["load.check", "load.copy", "load.copied"])
def test_abort_during_an_asynchronous_load(main_engine: Driver, tmp_path: pathlib.Path, step: str) -> None:
    prompt, salt = stored(main_engine, seed=60)
    gate = Gate(tmp_path, step)
    main_engine.process.call("watch", gate)
    main_engine.process.call("add", "aborted", prompt, 4, salt)
    main_engine.step_until_held(gate)
    main_engine.process.call("abort", "aborted")
    # Others go on while the load of the aborted one is held; its blocks must not be theirs.
    other = main_engine.one(prompt_of(700, seed=61), new_salt())
    assert other.finish_reason == "length"
    assert main_engine.state["num_trackers"] == 1
    gate.open()
    main_engine.process.call("watch", None)
    check_still_served(main_engine, prompt, salt)


def test_abort_right_after_add(engine: Driver) -> None:
    prompt, salt = stored(engine, seed=62)
    engine.process.call("add", "aborted", prompt, 4, salt)
    engine.process.call("abort", "aborted")
    check_still_served(engine, prompt, salt)


def test_abort_while_the_lookup_is_not_answered(engine: Driver) -> None:
    """The answer comes after the request is gone; what it promises is given back."""
    prompt, salt = stored(engine, seed=63)
    engine.run("lookups = scheduler.connector._scheduler._lookups; lookups.lookup_at_once = lookups.lookup\n"
               "def ask_only(request_id, salt, digests, wait_s):\n"
               "    lookups._asked.get(request_id) or lookups._ask(request_id, salt, digests)\n"
               "lookups.lookup = ask_only")  # fmt: skip
    engine.process.call("add", "aborted", prompt, 4, salt)
    engine.process.call("step", 3)
    asked = "result = len(scheduler.connector._scheduler._lookups._asked)"
    assert engine.run(asked) == 1
    engine.process.call("abort", "aborted")
    assert engine.run(asked) == 0
    engine.run("del scheduler.connector._scheduler._lookups.lookup")
    check_still_served(engine, prompt, salt)


def test_abort_while_running(engine: Driver) -> None:
    prompt, salt = stored(engine, seed=64)
    engine.process.call("add", "aborted", prompt, 200, salt)
    engine.step_until("all(request.num_output_tokens > 3 for request in scheduler.requests.values())", "it decodes")
    assert engine.run("result = len(scheduler.requests)") == 1
    engine.process.call("abort", "aborted")
    check_still_served(engine, prompt, salt)


def test_many_requests_of_which_most_are_aborted(engine: Driver) -> None:
    """At every stage of their lives, 60 of them: not one lock, session, block or tracker is left."""
    prompts, salt = [prompt_of(600 + 7 * index, seed=70 + index % 6) for index in range(60)], new_salt()
    engine.process.generate(prompts[:6], 1, salts=[salt] * 6)
    engine.process.settle()
    engine.process.forget()
    for index, prompt in enumerate(prompts):
        engine.process.call("add", f"many-{index}", prompt, 2 + index % 5, salt)
        if index % 4:
            engine.process.call("step", index % 3)
        if index % 5:
            engine.process.call("abort", f"many-{index}")
    finished = engine.process.call("finish")
    assert len(finished) <= 60
    assert all(f"many-{index}" in finished for index in range(0, 60, 5))
    engine.check_nothing_held()
