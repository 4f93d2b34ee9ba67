"""Long bodies in which everything is wrong: what is said of them is bounded before it is put together, since
to describe a million errors would hold up every other call."""

from __future__ import annotations

import httpx
import pytest

_NUM_ITEMS = 1000
_KEYS = {"keys": [0] * _NUM_ITEMS}
_BLOCKS = {"block_ids": [""] * _NUM_ITEMS, "chunk_size": 1}
_TOKENS = {"model_name": "m", "world_size": 1, "token_ids": [-1] * _NUM_ITEMS}
_FIELDS = {f"field-{number}": number for number in range(_NUM_ITEMS)}


@pytest.mark.parametrize(
    ("method", "path", "body", "place"),
    [
        ("DELETE", "/l2", _KEYS, ["body", "keys", 0]),
        ("DELETE", "/cache/objects", _KEYS, ["body", "keys", 0]),
        ("POST", "/cache/checksums", _BLOCKS, ["body", "block_ids", 0]),
        ("POST", "/cache/prefetches", _TOKENS, ["body", "token_ids", 0]),
        ("POST", "/reconfigure/mock/resize", _FIELDS, ["body"]),
        ("POST", "/reconfigure/dax/add", _FIELDS, ["body"]),
    ],
)
def test_the_first_wrong_item_is_told_alone(
    http: httpx.Client, method: str, path: str, body: dict[str, object], place: list[object]
) -> None:
    answer = http.request(method, path, json=body)
    assert answer.status_code == 422
    assert [item["loc"] for item in answer.json()["detail"]] == [place]
