"""What vLLM learns about us: KV events, statistics, and the counts a request asks for."""

from __future__ import annotations

from lmcache.testing.waiting import wait_until
from tests.vllm_engine.driver import Driver
from tests.vllm_shared.prompts import CHUNK, new_salt, prompt_of

RECORD_EVENTS = """
events = engine.events = []
take = scheduler.connector.take_events
def recorded():
    found = list(take())
    events.extend(
        (type(event).__name__, event.medium, [digest.hex() for digest in event.block_hashes],
         getattr(event, "token_ids", None), getattr(event, "parent_block_hash", None),
         getattr(event, "block_size", None))
        for event in found
    )
    return found
scheduler.connector.take_events = recorded
"""


def test_events_name_what_was_stored_and_what_left(main_engine: Driver) -> None:
    main_engine.run(RECORD_EVENTS)
    prompt, salt = prompt_of(600, seed=160), new_salt()
    main_engine.store(prompt, salt)
    main_engine.process.call("step", 3)
    stored = [event for event in main_engine.run("result = engine.events") if event[0] == "BlockStored"]
    assert [event[3] for event in stored] == [prompt[:CHUNK], prompt[CHUNK : 2 * CHUNK]]
    assert [event[1] for event in stored] == ["LMCACHE"] * 2
    assert [event[5] for event in stored] == [CHUNK] * 2
    assert stored[0][4] is None
    assert stored[1][4].hex() == stored[0][2][0]
    main_engine.server.clear()
    digests = {digest for event in stored for digest in event[2]}
    wait_until(lambda: digests <= gone_by_the_next_request(main_engine))
    assert {event[1] for event in main_engine.run("result = engine.events")} == {"LMCACHE"}
    main_engine.run("del scheduler.connector.take_events")


def gone_by_the_next_request(engine: Driver) -> set[str]:
    """What was told to have left so far; an engine without work publishes nothing."""
    engine.one(prompt_of(3, seed=new_salt()), max_tokens=8)
    events = engine.run("result = engine.events")
    return {digest for event in events if event[0] == "BlockRemoved" for digest in event[2]}


def figures(engine: Driver) -> dict[str, float]:
    ours = "[metric for metric in llm.get_metrics() if metric.name.startswith('vllm:lmcache_')]"
    return engine.run(f"result = {{metric.name: metric.value for metric in {ours}}}")


def test_statistics_reach_the_metrics_of_vllm(main_engine: Driver) -> None:
    before = figures(main_engine)
    prompt, salt = prompt_of(800, seed=161), new_salt()
    main_engine.store(prompt, salt)
    assert main_engine.hit(prompt, salt).num_cached_tokens == 768
    main_engine.store(prompt_of(300, seed=162), salt)
    after = figures(main_engine)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["vllm:lmcache_loaded_tokens"] == 768
    assert grown["vllm:lmcache_loads"] == 1
    assert grown["vllm:lmcache_stored_chunks"] == 4
    assert grown["vllm:lmcache_load_bytes"] == grown["vllm:lmcache_store_bytes"] / 4 * 3
    assert grown["vllm:lmcache_lookups"] >= 3


def test_request_that_asks_is_told_how_much_was_cached(engine: Driver) -> None:
    prompt, salt = prompt_of(800, seed=163), new_salt()
    engine.store(prompt, salt)
    asked = {"extra_args": {"kv_transfer_params": {"cached_token_stats": True}}}
    output = engine.hit(prompt, salt, **asked)
    assert output.kv_transfer_params == {
        "num_vllm_cached_tokens": 0, "num_lmcache_cached_tokens": 768, "num_lmcache_extra_cached_tokens": 768,
    }  # fmt: skip
    assert engine.hit(prompt, salt).kv_transfer_params is None
