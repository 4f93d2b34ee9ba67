"""Hot cache, bypass and backends of a running vLLM, switched by its operators: what hits, and where it comes from."""

from __future__ import annotations

from lmcache.testing.vllm_spec import Output
from tests.vllm_shared.prompts import new_salt, prompt_of, same
from tests.vllm_v1.operators import Operated

PROMPT = prompt_of(700, seed=700)


def num_cached(operated: Operated, prompt: list[int], salt: str) -> int:
    return operated.engine.hit(prompt, salt, max_tokens=1).num_cached_tokens


def check_hit(operated: Operated, output: Output, num_tokens: int) -> None:
    assert output.num_cached_tokens == num_tokens
    assert same(output, operated.engine.prefix_hit(PROMPT, num_tokens))


def lose_files(operated: Operated) -> None:
    operated.files()
    operated.worker.ask("DELETE", "/cache/clear?locations=LocalDiskBackend")
    assert not operated.files()


def test_hot_cache_off(operated: Operated) -> None:
    """L1 is emptied and stays so; the disk serves all the same."""
    engine, salt = operated.engine, new_salt()
    engine.store(PROMPT, salt)
    assert operated.num_in_l1() == len(operated.files()) == 2
    assert not operated.worker.json("PUT", "/hot_cache/disable")["hot_cache"]
    assert operated.num_in_l1() == 0
    hit = engine.hit(PROMPT, salt)
    engine.store(prompt_of(600, seed=701), salt)
    assert len(operated.files()) == 4
    engine.check_nothing_held()
    assert operated.num_in_l1() == 0
    operated.worker.ask("PUT", "/hot_cache/enable")
    assert num_cached(operated, PROMPT, salt) == 512
    assert operated.num_in_l1() == 2
    check_hit(operated, hit, 512)


def test_hot_cache_off_under_traffic(operated: Operated) -> None:
    engine, salt = operated.engine, new_salt()
    engine.store(PROMPT, salt)
    operated.files()
    prompts = [prompt_of(900, seed=710 + index, shared=PROMPT[:600]) for index in range(6)]
    engine.process.forget()
    engine.process.begin("generate", prompts, 30, salts=[salt] * len(prompts))
    operated.worker.ask("PUT", "/hot_cache/disable")
    outputs = engine.process.answer()
    assert [output.num_cached_tokens for output in outputs] == [512] * len(prompts)
    engine.check_nothing_held()
    operated.files()
    assert operated.num_in_l1() == 0
    for prompt in prompts[:2]:
        assert engine.check_pages(prompt, salt) == 768


def test_disk_is_bypassed(operated: Operated) -> None:
    engine, salt, other = operated.engine, new_salt(), new_salt()
    engine.store(PROMPT, salt)
    operated.leave_disk_only()
    operated.worker.ask("PUT", "/bypass/add?backend_name=LocalDiskBackend")
    files = operated.files()
    assert num_cached(operated, PROMPT, salt) == 0
    assert num_cached(operated, PROMPT, salt) == 512  # stored to L1 a moment ago
    engine.store(PROMPT, other)
    assert operated.files() == files
    operated.worker.ask("PUT", "/bypass/remove?backend_name=LocalDiskBackend")
    operated.leave_disk_only()
    check_hit(operated, engine.hit(PROMPT, salt), 512)
    assert num_cached(operated, PROMPT, other) == 0


def test_l1_is_bypassed(operated: Operated) -> None:
    engine, salt, other = operated.engine, new_salt(), new_salt()
    engine.store(PROMPT, salt)
    lose_files(operated)
    operated.worker.ask("PUT", "/bypass/add?backend_name=LocalCPUBackend")
    held = operated.l1_order()[0]
    assert num_cached(operated, PROMPT, salt) == 0
    engine.store(PROMPT, other)
    assert len(operated.files()) == 4  # the one that L1 has, too: nobody looked there
    assert sorted(operated.l1_order()[0]) == sorted(held)
    check_hit(operated, engine.hit(PROMPT, other), 512)
    operated.worker.ask("PUT", "/bypass/remove?backend_name=LocalCPUBackend")
    lose_files(operated)
    assert num_cached(operated, PROMPT, salt) == 512
    assert num_cached(operated, PROMPT, other) == 0


def test_backend_is_closed_and_opened(operated: Operated) -> None:
    engine, salt = operated.engine, new_salt()
    engine.store(PROMPT, salt)
    operated.leave_disk_only()
    assert "LocalDiskBackend" not in operated.worker.json("DELETE", "/backends/LocalDiskBackend")["backends"]
    assert num_cached(operated, PROMPT[:511], salt) == 0
    assert list(operated.worker.json("POST", "/backends")["created"]) == ["LocalDiskBackend"]
    operated.worker.ask("DELETE", "/cache/clear?locations=LocalCPUBackend")
    check_hit(operated, engine.hit(PROMPT, salt), 512)
    operated.leave_disk_only()
    operated.worker.ask("POST", "/backends/LocalDiskBackend/recreate")
    assert num_cached(operated, PROMPT, salt) == 512
