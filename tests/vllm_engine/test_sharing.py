"""Several vLLM processes on one server: equal ones share hits, others never do."""

from __future__ import annotations

from tests.vllm_engine.driver import Driver
from tests.vllm_shared.prompts import new_salt, prompt_of, same, worst_error


def test_another_process_hits_what_the_first_stored(main_engine: Driver, sync_engine: Driver) -> None:
    prompt, salt = prompt_of(1100, seed=20), new_salt()
    main_engine.store(prompt[:1024], salt)
    hit = sync_engine.hit(prompt, salt)
    assert hit.num_cached_tokens == 1024
    assert same(hit, sync_engine.prefix_hit(prompt, 1024))
    assert same(hit, main_engine.prefix_hit(prompt, 1024))
    assert same(hit, main_engine.hit(prompt, salt))


def test_two_processes_store_the_same_prompts_at_once(main_engine: Driver, sync_engine: Driver) -> None:
    prompts, salt = [prompt_of(800, seed) for seed in range(21, 25)], new_salt()
    for driver in (main_engine, sync_engine):
        driver.process.begin("generate", prompts, 2, salts=[salt] * len(prompts))
    for driver in (main_engine, sync_engine):
        driver.process.answer()
    for driver in (main_engine, sync_engine):
        driver.process.settle()
    for prompt in prompts:
        hits = [driver.hit(prompt, salt) for driver in (main_engine, sync_engine)]
        assert [hit.num_cached_tokens for hit in hits] == [768, 768]
        assert same(*hits)
        pages = main_engine.pages(prompt, salt)[1]
        assert worst_error(pages, sync_engine.pages(prompt, new_salt())[1]) < 0.1


def test_other_weights_at_the_same_place_share_nothing(main_engine: Driver, small_engine: Driver) -> None:
    prompt, salt = prompt_of(900, seed=26), new_salt()
    expected = main_engine.store(prompt[:768], salt, max_tokens=4)
    other = small_engine.store(prompt[:768], salt, max_tokens=4)
    assert other.num_cached_tokens == 0
    assert other.token_ids != expected.token_ids
    hits = [driver.hit(prompt, salt) for driver in (main_engine, small_engine)]
    assert [hit.num_cached_tokens for hit in hits] == [768, 768]
    assert same(hits[0], main_engine.prefix_hit(prompt, 768))
    assert same(hits[1], small_engine.prefix_hit(prompt, 768))
    assert len(set(main_engine.server.roots())) >= 2
