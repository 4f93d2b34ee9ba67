"""No server, a dead one, another one at the same place: vLLM serves on, says so once, comes back by itself."""

from __future__ import annotations

from lmcache.testing.waiting import wait_until
from tests.vllm_engine.cache_server import CacheServer
from tests.vllm_engine.driver import Driver
from tests.vllm_shared.prompts import new_salt, prompt_of, same

_PATIENCE_S = 120.0
_MEMBERSHIPS = """
from dataclasses import replace
from vllm.distributed.kv_transfer import get_kv_transfer_group
memberships = [half.membership for half in (scheduler.connector._scheduler, get_kv_transfer_group()._worker)]
"""
_SET_TIMEOUT = f"""{_MEMBERSHIPS}
for membership in memberships:
    membership.config = replace(membership.config, timeout_s=timeout_s)
"""
_COUNT_ATTEMPTS = f"""{_MEMBERSHIPS}
def counted(membership, say):
    def say_and_count(level, text, state=""):
        say(level, text, state)
        membership.num_attempts += 1
    return say_and_count
for membership in memberships:
    membership.num_attempts = 0
    membership._say = counted(membership, type(membership)._say.__get__(membership))
"""
_NUM_ATTEMPTS = f"{_MEMBERSHIPS}\nresult = min(membership.num_attempts for membership in memberships)"


def wait_until_lost(engine: Driver) -> None:
    wait_until(lambda: not engine.state["is_joined"], _PATIENCE_S)


def let_it_look_for_a_server(engine: Driver) -> None:
    """Both halves have tried to join more than once, and nobody was there."""
    usual_s = engine.run("result = scheduler.connector._config.mq_timeout_s")
    engine.run(_COUNT_ATTEMPTS)
    engine.run(_SET_TIMEOUT, timeout_s=0.1)
    wait_until(lambda: engine.run(_NUM_ATTEMPTS) >= 3, _PATIENCE_S)
    engine.run(_SET_TIMEOUT, timeout_s=usual_s)


def said(engine: Driver, level: str = "WARNING") -> list[str]:
    return [line for line in engine.process.call("log_lines", level) if "server" in line or "joined" in line]


def test_life_with_a_server_that_comes_and_goes(lonely_engine: Driver, lonely_server: CacheServer) -> None:
    engine, salt = lonely_engine, new_salt()
    prompt = prompt_of(1000, seed=110)

    # Nobody is there: served without cache, one line per half of the connector.
    assert not engine.state["is_joined"]
    alone = [engine.one(prompt_of(600, seed=111 + index), new_salt()) for index in range(3)]
    assert all(output.finish_reason == "length" for output in alone)
    let_it_look_for_a_server(engine)
    lines = said(engine)
    assert len(lines) == 2
    assert all("no lmcache server" in line for line in lines)

    # It comes: hits, without anybody's help.
    lonely_server.start()
    engine.wait_until_joined()
    engine.store(prompt[:768], salt)
    expected = engine.hit(prompt, salt)
    assert expected.num_cached_tokens == 768
    assert same(expected, engine.prefix_hit(prompt, 768))
    engine.check_nothing_held()

    # SIGKILL in mid-life: the next prompts are computed, right and without an error.
    said(engine)
    engine.run(_SET_TIMEOUT, timeout_s=0.1)  # else each half waits long for the answer to its last question
    lonely_server.kill()
    outputs = engine.process.generate([prompt, prompt_of(700, seed=115)], 4, salts=[salt, salt])
    assert [output.finish_reason for output in outputs] == ["length", "length"]
    wait_until_lost(engine)
    assert engine.one(prompt, salt).finish_reason == "length"
    let_it_look_for_a_server(engine)
    assert len(said(engine)) == 2

    # Another process adopts the pool: what was stored before is still a hit.
    lonely_server.start()
    assert lonely_server.report()["recovered"] > 0
    engine.wait_until_joined()
    hit = engine.hit(prompt, salt)
    assert hit.num_cached_tokens == 768
    assert same(hit, expected)
    engine.check_nothing_held()


def test_server_that_dies_between_promise_and_load_costs_nothing(
    lonely_engine: Driver, lonely_server: CacheServer
) -> None:
    """Between the promise and the load nobody asks the server anything."""
    engine, salt = lonely_engine, new_salt()
    if not lonely_server.is_running:
        lonely_server.start()
    engine.wait_until_joined()
    prompt = prompt_of(1000, seed=120)
    engine.store(prompt[:768], salt)
    expected = engine.prefix_hit(prompt, 768)
    engine.process.settle()
    engine.process.forget()
    engine.run(
        "import os, signal\n"
        "class Killer:\n"
        "    def reached(self, step):\n"
        "        if step == 'load.check' and pid:\n"
        "            os.kill(pid, signal.SIGKILL)\n"
        "            engine._transfer._steps = before\n"
        "before = engine._transfer._steps\n"
        "engine._transfer._steps = Killer()\n",
        pid=lonely_server.pid,
    )
    hit = engine.one(prompt, salt)
    lonely_server.kill()
    assert hit.num_cached_tokens == 768
    assert same(hit, expected)


def test_restart_while_requests_run(lonely_engine: Driver, lonely_server: CacheServer) -> None:
    """Requests span the change of servers: all end, nothing of the new server's is held by the old ones."""
    engine, salt = lonely_engine, new_salt()
    if not lonely_server.is_running:
        lonely_server.start()
    engine.wait_until_joined()
    prompts = [prompt_of(500 + 90 * index, seed=130 + index) for index in range(6)]
    engine.process.generate(prompts[:3], 2, salts=[salt] * 3)
    engine.process.settle()
    engine.process.forget()
    engine.process.begin("generate", prompts, 60, salts=[salt] * 6)
    lonely_server.kill()
    lonely_server.start()
    outputs = engine.process.answer()
    assert [len(output.token_ids) for output in outputs] == [60] * 6
    engine.wait_until_joined()
    engine.check_nothing_held()
    engine.store(prompts[5], salt)
    assert engine.hit(prompts[5], salt).num_cached_tokens == 768
