"""Pages of a running vLLM as its operators see them, and tokens of theirs, which touch no page of a request."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest

from tests.vllm_shared.prompts import BLOCK, CHUNK, new_salt, prompt_of, same
from tests.vllm_v1.operators import Operated

# MD5s by torch alone: of each layer's values at slots, bfloat16 as float32, chunk by chunk.
_MD5S = """
import hashlib, torch
context = scheduler.vllm_config.compilation_config.static_forward_context
size, result = scheduler.block_size, {}
for name, module in context.items():
    pages = module.kv_cache
    tokens = [pages[slot // size, :, slot % size, :] for slot in slots]
    result[name] = [
        hashlib.md5(torch.stack(tokens[start : start + chunk]).float().contiguous().numpy().tobytes()).hexdigest()
        for start in range(0, len(slots), chunk)
    ]
"""
# A request in the middle of its answer, whose blocks are then known.
_HOLD = """
engine.held = engine.add("held", prompt, 200, salt)
while len(scheduler.requests[engine.held].output_token_ids) < 3:
    engine.step()
(result,) = scheduler.kv_cache_manager.get_block_ids(engine.held)
"""
_FINISH = "result = engine.finish()['held']"


def check(operated: Operated, slots: str, chunk_size: int, layerwise: bool = False) -> Any:
    target = f"/cache/kvcache/check?slot_mapping={slots}&chunk_size={chunk_size}&layerwise={str(layerwise).lower()}"
    return operated.worker.json("GET", target)["chunk_checksums"]


@pytest.mark.parametrize(("slots", "text"), [
    (list(range(128, 428)), "[128,427]"), ([700, 5, 5, 129, 130, 131, 1], "700,5,5,[129,131],1"),
])  # fmt: skip
def test_checksums_are_those_of_vllms_tensors(operated: Operated, slots: list[int], text: str) -> None:
    operated.engine.one(prompt_of(600, seed=1000), new_salt())
    expected = operated.engine.run(_MD5S, slots=slots, chunk=100)
    assert sorted(expected) == [f"model.layers.{number}.self_attn.attn" for number in range(4)]
    assert check(operated, text, 100, layerwise=True) == expected
    rows = zip(*(expected[name] for name in sorted(expected)), strict=True)
    assert check(operated, text, 100) == [hashlib.md5("".join(row).encode()).hexdigest() for row in rows]


def test_pages_are_described(operated: Operated) -> None:
    info = operated.worker.json("GET", "/cache/kvcache/info")
    num_blocks = operated.engine.run("result = scheduler.kv_cache_manager.block_pool.num_gpu_blocks")
    assert info["num_layers"] == len(info["layers"]) == 4
    for layer in info["layers"].values():
        assert (layer["dtype"], layer["device"]) == ("torch.bfloat16", "cpu")
        assert layer["shape"] == [num_blocks, 2, BLOCK, 2 * 64]


def test_mock_tokens_touch_no_page(operated: Operated) -> None:
    """All pages are the same before and after, those of a running request too, and it ends as it would have."""
    engine, worker, salt = operated.engine, operated.worker, new_salt()
    prompt = prompt_of(600, seed=1001)
    expected = engine.one(prompt, new_salt(), max_tokens=200)
    blocks = engine.run(_HOLD, prompt=prompt, salt=salt)
    last = engine.run("result = scheduler.kv_cache_manager.block_pool.num_gpu_blocks") * BLOCK - 1
    before = check(operated, f"[0,{last}]", 4 * BLOCK)
    num_before = operated.num_in_l1()
    assert worker.json("POST", "/cache/retrieve?tokens_mock=5,2000")["num_retrieved"] == 0
    assert worker.json("POST", "/cache/store?tokens_mock=5,2000")["num_tokens"] == 1995
    assert operated.num_in_l1() == num_before + 7
    assert worker.json("POST", "/cache/retrieve?tokens_mock=5,2000")["num_retrieved"] == 7 * CHUNK
    assert worker.json("POST", "/cache/retrieve?tokens_mock=6,2000")["num_retrieved"] == 0
    assert check(operated, f"[0,{last}]", 4 * BLOCK) == before
    assert engine.run("(result,) = scheduler.kv_cache_manager.get_block_ids(engine.held)") == blocks
    assert same(engine.run(_FINISH), expected)


def test_mock_tokens_are_those_of_no_request(operated: Operated) -> None:
    tokens = list(range(600))
    operated.worker.ask("POST", "/cache/store?tokens_mock=0,600")
    assert operated.engine.one(tokens).num_cached_tokens == 0
    operated.leave_disk_only()
    assert operated.worker.json("POST", "/cache/retrieve?tokens_mock=0,600")["num_retrieved"] == 512


def test_mock_tokens_under_traffic(operated: Operated) -> None:
    engine, worker, salt = operated.engine, operated.worker, new_salt()
    stem = prompt_of(600, seed=1002)
    engine.store(stem, salt)
    prompts = [prompt_of(900 + index, seed=1003 + index, shared=stem) for index in range(8)]
    engine.process.begin("generate", prompts, 20, salts=[salt] * len(prompts))
    for number in range(10):
        worker.ask("POST", f"/cache/store?tokens_mock={number},1000")
        assert worker.json("POST", f"/cache/retrieve?tokens_mock={number},1000")["num_retrieved"] == 768
    outputs = engine.process.answer()
    assert [output.num_cached_tokens for output in outputs] == [512] * len(prompts)
    for prompt in prompts[:2]:
        assert engine.check_pages(prompt, salt) == 768


def test_more_mock_tokens_than_pages(operated: Operated) -> None:
    refused = operated.worker.json("POST", "/cache/store?tokens_mock=0,9999999", 500)
    assert (refused["error"], refused["exception_type"]) == ("Failed to store cache", "BlockRangeError")


def test_slots_are_logged_while_asked_for(operated: Operated) -> None:
    engine, worker, salt = operated.engine, operated.worker, new_salt()
    prompt = prompt_of(600, seed=1020)
    assert worker.json("POST", "/cache/kvcache/record_slot?enabled=TRUE")["kvcache_check_log_enabled"]
    engine.log_lines("INFO")
    engine.store(prompt, salt)
    engine.hit(prompt, salt)
    worker.ask("POST", "/cache/store?tokens_mock=0,512")
    worker.ask("POST", "/cache/retrieve?tokens_mock=0,512")
    assert not worker.json("POST", "/cache/kvcache/record_slot?enabled=false")["kvcache_check_log_enabled"]
    engine.hit(prompt, salt)
    lines = [line for line in engine.log_lines("INFO") if line.startswith("[KVCache Check]")]
    form = re.compile(r"\[KVCache Check\] (Store|Retrieve) request (.+), tokens=512, slot_mapping: (\[.*\])")
    found = [form.fullmatch(line) for line in lines]
    assert [match.group(1) for match in found if match] == ["Store", "Retrieve", "Store", "Retrieve"]
    assert [match.group(2) for match in found[2:] if match] == ["cache_api_store", "cache_api_retrieve"]
