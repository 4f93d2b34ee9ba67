"""What a status tells of the identity of engines: what differs between two, and no secret."""

from __future__ import annotations

import json
from typing import Any

from tests.engine.conftest import Harness, layout

FACTS: dict[str, Any] = {
    "vllm": "0.32.0",
    "device": "cpu",
    "max_model_len": None,
    "model": {"model": "/home/me/model", "dtype": "torch.bfloat16", "revision": "v1", "quantization": None,
              "hf_overrides": {"api_key": "open-sesame"}, "code_revision": {"odd": "open-sesame"}},
    "weights": {"method": "whole", "files": [["a.safetensors", 1, "", "ff"]]},
    "cache": {"cache_dtype": "auto"},
    "parallel": {"tensor_parallel_size": 2, "pipeline_parallel_size": 1},
    "additional": [{"token": "open-sesame"}],
}  # fmt: skip
TOLD = {
    "vllm": "0.32.0", "device": "cpu", "max_model_len": None, "dtype": "torch.bfloat16", "revision": "v1",
    "quantization": None, "cache_dtype": "auto", "tensor_parallel_size": 2, "pipeline_parallel_size": 1,
}  # fmt: skip


def register(joined: Harness, engine_id: str, facts: object, world_size: int = 1) -> None:
    number = len(joined.engine.registry.clients)
    for rank in range(world_size):
        joined.worker(uid=1000 + 10 * number + rank, rank=rank, world_size=world_size, engine_id=engine_id)
    joined.scheduler(5000 + number, world_size, engine_id, json.dumps(facts).encode())


def identities(joined: Harness) -> list[dict[str, Any]]:
    """Of the engines beside the one that every test begins with."""
    found: list[dict[str, Any]] = json.loads(json.dumps(joined.engine.report_status()["engine_identities"]))
    return found[1:]


def test_one_entry_for_all_ranks(joined: Harness) -> None:
    register(joined, "two", FACTS, world_size=2)
    (entry,) = identities(joined)
    assert list(entry) == ["instance_ids", "model_name", "root", "facts", "digests"]
    assert (entry["instance_ids"], entry["model_name"]) == ([1, 2], "org/m")
    assert entry["root"] == joined.engine.registry.engines["two"].root.hex()[:12]
    assert entry["facts"] == TOLD
    assert entry["digests"].keys() == FACTS.keys()
    assert "sesame" not in json.dumps(entry)
    assert "/home/me" not in json.dumps(entry)


def test_engines_differ_in_the_part_that_differs(joined: Harness) -> None:
    other = {**FACTS, "weights": {"method": "whole", "files": [["a.safetensors", 1, "", "00"]]}}
    for name, facts in (("a", FACTS), ("b", FACTS), ("c", other)):
        register(joined, name, facts)
    first, same, third = identities(joined)
    assert (first["root"], first["digests"], first["facts"]) == (same["root"], same["digests"], same["facts"])
    assert first["root"] != third["root"]
    assert first["facts"] == third["facts"]
    assert {name for name in FACTS if first["digests"][name] != third["digests"][name]} == {"weights"}


def test_what_is_not_there_yet_is_not_told(joined: Harness) -> None:
    joined.worker(uid=1000, rank=1, world_size=2, engine_id="half", kv_layout=layout(8192))
    (entry,) = identities(joined)
    assert entry == {"instance_ids": [1], "model_name": "org/m", "root": None, "facts": {}, "digests": {}}
    joined.scheduler(5000, 2, "half", json.dumps(FACTS).encode())
    (entry,) = identities(joined)
    assert (entry["root"], entry["facts"]) == (None, TOLD)
    joined.engine.registry.remove(1000)
    assert identities(joined) == []


def test_facts_of_another_form(joined: Harness) -> None:
    """Another integration has others."""
    register(joined, "other", {"model": "m", "parallel": [1], "vllm": {"odd": 1}})
    (entry,) = identities(joined)
    assert entry["facts"] == {}
    assert entry["digests"].keys() == {"model", "parallel", "vllm"}
