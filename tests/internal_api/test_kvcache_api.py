"""MD5s of slots, what the pages are, and the switch for the slots in the log."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from lmcache.embedded.kv_tensors import KVTensor, KVTensors
from lmcache.testing.embedded_fake import documented_pages
from tests.internal_api.asking import Asked, scheduler, worker

_NO_PAGES = {"error": "kv_caches not available", "message": "kv_caches is empty or not initialized"}
_NO_ADAPTER = {"error": "LMCache adapter unavailable", "message": "LMCache adapter not configured."}
_FORMAT = "slot_mapping must be comma-separated integers or ranges like [start,end]"


def check(asked: Asked, code: int = 200, **params: Any) -> Any:
    return asked.json("GET", "/cache/kvcache/check", code, params=params)


def with_pages(tokens_per_block: int | None, **layers: KVTensor) -> Asked:
    asked = worker()
    asked.manager.pages = KVTensors(layers, tokens_per_block)
    return asked


def md5(*arrays: np.ndarray) -> str:
    return hashlib.md5(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def aggregated(*digests: str) -> str:
    return hashlib.md5("".join(digests).encode()).hexdigest()


@pytest.mark.parametrize(
    ("params", "body"),
    [
        ({}, {"error": "Missing parameters", "message": "slot_mapping parameter is required"}),
        ({"slot_mapping": "a,b"}, {"error": "Invalid slot_mapping format",
                                   "message": f"{_FORMAT}: 'a' is neither a number nor a range"}),
        ({"slot_mapping": "[3,1]"}, {"error": "Invalid slot_mapping format",
                                     "message": f"{_FORMAT}: [3,1] ends before it starts"}),
        ({"slot_mapping": "9", "chunk_size": 2}, {"error": "Invalid slot indices",
                                                  "message": "Slot indices out of bounds: [9]. Valid range: 0 to 3"}),
        ({"slot_mapping": "0,-1,[2,99999999999999]"}, {
            "error": "Invalid slot indices",
            "message": "Slot indices out of bounds: [-1, 4...99999999999999]. Valid range: 0 to 3"}),
        ({"slot_mapping": "[0,3]," * 9}, {"error": "Invalid slot indices",
                                          "message": "too many slots in a single request (limit=16)"}),
        ({"slot_mapping": "0"}, {"error": "Invalid chunk_size", "message": "chunk_size must be a positive integer"}),
        ({"slot_mapping": "0", "chunk_size": 0}, {"error": "Invalid chunk_size",
                                                  "message": "chunk_size must be a positive integer"}),
    ],
)  # fmt: skip
def test_bad_parameters(params: dict[str, Any], body: object) -> None:
    assert check(worker(), 400, **params) == body


def test_chunk_size_that_is_no_number() -> None:
    assert "detail" in check(worker(), 422, slot_mapping="0", chunk_size="abc")


def test_order_of_the_checks() -> None:
    asked = scheduler()
    assert check(asked, 404, slot_mapping="0") == _NO_PAGES
    assert check(asked, 400, slot_mapping="x")["error"] == "Invalid slot_mapping format"
    asked.app.state.lmcache_adapter = None
    assert check(asked, 503) == _NO_ADAPTER


def test_ranges_are_told_as_a_list_in_the_order_asked() -> None:
    body = check(worker(), slot_mapping="3, 0,1,2, 1,2", chunk_size=10)
    assert body["slot_mapping_ranges"] == [3, [0, 2], 1, 2]
    assert (body["num_chunks"], body["chunk_size"]) == (1, 10)


def test_blocks_of_vllm_are_read_at_their_slots() -> None:
    """`[blocks, heads, tokens, content]`, as views that are not contiguous."""
    pages = np.arange(3 * 4 * 2 * 5, dtype=np.float16).reshape(3, 4, 2, 5).transpose(0, 2, 1, 3)
    asked = with_pages(4, b=KVTensor(pages, "torch.float16", "cpu"), a=KVTensor(-pages, "torch.float16", "cpu"))
    rows = [pages[slot // 4, :, slot % 4, :] for slot in (1, 11, 4)]
    body = check(asked, slot_mapping="1,11,4", chunk_size=2, layerwise=True)
    assert body["chunk_checksums"]["b"] == [md5(*rows[:2]), md5(rows[2])]
    merged = check(asked, slot_mapping="1,11,4", chunk_size=2)["chunk_checksums"]
    by_name = body["chunk_checksums"]
    assert merged == [aggregated(a, b) for a, b in zip(by_name["a"], by_name["b"], strict=True)]
    assert check(asked, 400, slot_mapping="12", chunk_size=1)["message"].endswith("Valid range: 0 to 11")


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 2, 5)])
def test_older_layouts_without_an_axis_for_keys_and_values(shape: tuple[int, ...]) -> None:
    pages = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    asked = with_pages(None, a=KVTensor(pages, "torch.float32", "cpu"))
    flat = pages.reshape(12, *shape[2:])
    found = check(asked, slot_mapping="5,[7,9]", chunk_size=3, layerwise=True)["chunk_checksums"]["a"]
    assert found == [md5(flat[[5, 7, 8]]), md5(flat[9])]


def test_long_chunks_are_hashed_in_pieces() -> None:
    pages = np.random.default_rng(1).random((2, 1000, 10, 1, 3), dtype=np.float32)
    asked = with_pages(None, a=KVTensor(pages, "torch.float32", "cpu"))
    found = check(asked, slot_mapping="[0,9999]", chunk_size=10000, layerwise=True)["chunk_checksums"]["a"]
    assert found == [md5(pages)]


def test_bfloat16_is_hashed_as_float32() -> None:
    values = np.array([1.0, -2.5, 0.15625, 3e38], dtype=np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    rounded = (halves.astype(np.uint32) << 16).view(np.float32)
    bfloat16 = KVTensor(halves.reshape(1, 4, 1), "torch.bfloat16", "cpu")
    uint16 = KVTensor(halves.reshape(1, 4, 1), "torch.uint16", "cpu")
    found = check(with_pages(None, a=bfloat16, b=uint16), slot_mapping="[0,3]", chunk_size=4, layerwise=True)
    assert found["chunk_checksums"] == {"a": [md5(rounded)], "b": [md5(halves)]}


def test_layer_of_another_form_says_error() -> None:
    pages = documented_pages()
    odd = KVTensor(np.zeros((2, 1, 2, 1, 2), np.float32), "torch.float32", "cpu")
    asked = with_pages(None, **pages.layers, odd=odd, flat=KVTensor(np.zeros(7, np.float32), "torch.float32", "cpu"))
    found = check(asked, slot_mapping="0,1,2,3", chunk_size=2, layerwise=True)["chunk_checksums"]
    assert (found["odd"], found["flat"]) == (["error", "error"], ["error", "error"])
    assert found["l.1"][0] != "error"
    failed = check(asked, 500, slot_mapping="0", chunk_size=1)
    assert failed == {"error": "Failed to compute checksums",
                      "message": "these layers cannot be read like the first: odd, flat"}  # fmt: skip


def test_too_many_checksums_are_refused() -> None:
    pages = np.zeros((1000, 300, 1), np.uint8)
    asked = with_pages(None, a=KVTensor(pages, "torch.uint8", "cpu"))
    refused = check(asked, 400, slot_mapping="[0,299999]", chunk_size=1)
    assert refused["error"] == "Invalid chunk_size"
    assert refused["message"].startswith("300000 chunks of 1 layers are too many checksums (limit=200000)")


def test_info_without_pages() -> None:
    asked = worker()
    asked.manager.pages = KVTensors({})
    assert asked.json("GET", "/cache/kvcache/info", 404) == _NO_PAGES
    asked.manager.pages = None
    assert asked.json("GET", "/cache/kvcache/info", 404) == _NO_PAGES
    asked.app.state.lmcache_adapter = None
    assert asked.json("GET", "/cache/kvcache/info", 503) == _NO_ADAPTER


def test_record_slot_needs_no_engine() -> None:
    asked = scheduler()
    target = "/cache/kvcache/record_slot"
    assert asked.json("POST", f"{target}?enabled=TRUE")["kvcache_check_log_enabled"] is True
    assert asked.manager.logs_slots is True
    assert asked.json("POST", f"{target}?enabled=maybe", 400) == {
        "error": "Invalid parameter", "message": "enabled must be 'true' or 'false'",
    }  # fmt: skip
    assert asked.json("POST", target)["kvcache_check_log_enabled"] is True
    asked.app.state.lmcache_adapter = None
    assert asked.json("POST", target, 503) == _NO_ADAPTER
