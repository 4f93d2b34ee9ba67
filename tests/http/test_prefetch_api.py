"""Operators' prefetches on the real application: a real engine, whose clients are registered by hand, and real L2."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lmcache.testing.waiting import wait_until
from tests.conftest import FakeClock
from tests.engine.conftest import CHUNK_SIZE, Harness
from tests.http.no_engine import ask
from tests.http.storage_site import FAULTY, MOCK, FaultyL2Adapter, StorageSite, storage_site

TOKENS = list(range(5 * CHUNK_SIZE))
NOOP = {"chunks": 0, "status": "noop"}


@pytest.fixture
def site(pool_folder: pathlib.Path) -> Iterator[StorageSite]:
    with storage_site(pool_folder, [MOCK]) as found:
        yield found


@pytest.fixture
def joined(site: StorageSite) -> Harness:
    """An engine of one rank."""
    return join(site)


def join(site: StorageSite, world_size: int = 1, engine_id: str = "e", first_uid: int = 1) -> Harness:
    harness = Harness(site.engine, FakeClock())
    for rank in range(world_size):
        harness.worker(first_uid + rank, rank, world_size, engine_id)
    harness.scheduler(first_uid + 99, world_size, engine_id, json.dumps({"model": engine_id}).encode())
    return harness


def fill_l2(site: StorageSite, harness: Harness, num_chunks: int, salt: str = "", uids: tuple[int, ...] = (1,)) -> None:
    """The prompt's first chunks are in L2 and nowhere else."""
    prefetches, adapter = site.engine.prefetches, site.tier().adapter
    for uid in uids:
        chain = prefetches.chains([harness.root(uid)], TOKENS[: num_chunks * CHUNK_SIZE])
        before = adapter.num_objects
        assert harness.store(list(chain[harness.root(uid)]), uid, salt) == num_chunks
        wait_until(lambda expected=before + num_chunks: adapter.num_objects == expected)
    site.engine.clear()


def submit(site: StorageSite, **fields: Any) -> httpx.Response:
    body = {"model_name": "org/m", "world_size": 1, "token_ids": TOKENS, **fields}
    return site.ask("POST", "/cache/prefetches", json=body)


def wait_for(site: StorageSite, answer: httpx.Response) -> dict[str, Any]:
    request_id = answer.json()["request_id"]
    found: dict[str, Any] = {}

    def is_completed() -> bool:
        reply = site.ask("GET", f"/cache/prefetches/{request_id}")
        assert reply.status_code == 200
        found.update(reply.json())
        return bool(found["status"] != "pending")

    wait_until(is_completed)
    return found


def held(site: StorageSite) -> int:
    return len(site.ask("GET", "/cache/objects?tier=l1").json()["entries"])


@pytest.mark.parametrize("num_held", [5, 3, 0])
def test_what_l2_holds_arrives(site: StorageSite, joined: Harness, num_held: int) -> None:
    if num_held:
        fill_l2(site, joined, num_held)
    answer = submit(site)
    request_id = answer.json()["request_id"]
    assert answer.status_code == 202
    assert answer.json() == {"request_id": request_id, "chunks": 5, "status": "submitted"}
    expected = {"request_id": request_id, "status": "completed", "found_keys": num_held, "total_keys": 5}
    assert wait_for(site, answer) == expected
    assert held(site) == num_held
    assert site.ask("GET", f"/cache/prefetches/{request_id}").json() == expected


def test_an_incomplete_chunk_does_not_count(site: StorageSite, joined: Harness) -> None:
    assert submit(site, token_ids=TOKENS[:-1]).json()["chunks"] == 4


def test_the_tenant_is_part_of_it(site: StorageSite, joined: Harness) -> None:
    fill_l2(site, joined, 2, "alice")
    assert wait_for(site, submit(site))["found_keys"] == 0
    assert wait_for(site, submit(site, cache_salt="alice"))["found_keys"] == 2


def test_every_rank_counts(site: StorageSite) -> None:
    harness = join(site, 2)
    fill_l2(site, harness, 3, uids=(1, 2))
    done = wait_for(site, submit(site, world_size=2))
    assert (done["found_keys"], done["total_keys"]) == (6, 10)
    assert submit(site).json() == NOOP


def test_every_engine_of_the_model_is_served(site: StorageSite) -> None:
    harness = join(site)
    join(site, 1, "other", 200)
    fill_l2(site, harness, 2, uids=(1, 200))
    done = wait_for(site, submit(site))
    assert (done["found_keys"], done["total_keys"]) == (4, 10)


@pytest.mark.parametrize("fields", [
    {"token_ids": []}, {"token_ids": TOKENS[: CHUNK_SIZE - 1]}, {"model_name": "org/other"}, {"world_size": 2},
])  # fmt: skip
def test_nothing_to_do(site: StorageSite, joined: Harness, fields: dict[str, Any]) -> None:
    answer = submit(site, **fields)
    assert (answer.status_code, answer.json()) == (202, NOOP)


def test_nothing_to_do_without_adapters_or_engines(pool_folder: pathlib.Path) -> None:
    with storage_site(pool_folder) as site:
        join(site)
        assert submit(site).json() == NOOP


def test_an_engine_that_is_not_whole_has_no_root_yet(site: StorageSite) -> None:
    Harness(site.engine, FakeClock()).worker()
    assert submit(site).json() == NOOP


def test_pending_until_l2_answers(pool_folder: pathlib.Path, plugins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with storage_site(pool_folder, [FAULTY]) as site:
        harness = join(site)
        fill_l2(site, harness, 1)
        adapter = site.tier().adapter
        assert isinstance(adapter, FaultyL2Adapter)
        lookup = adapter.lookup

        def wait_for_gate(keys: Any) -> list[bool]:
            adapter.gate.wait(30)
            return lookup(keys)

        monkeypatch.setattr(adapter, "lookup", wait_for_gate)
        adapter.gate.clear()
        answer = submit(site)
        request_id = answer.json()["request_id"]
        pending = {"request_id": request_id, "status": "pending"}
        assert site.ask("GET", f"/cache/prefetches/{request_id}").json() == pending
        adapter.gate.set()
        assert wait_for(site, answer)["found_keys"] == 1


def test_a_million_tokens(site: StorageSite, joined: Harness) -> None:
    answer = submit(site, token_ids=[7] * 1_000_000)
    assert (answer.status_code, answer.json()["chunks"]) == (202, 62_500)
    assert wait_for(site, answer)["found_keys"] == 0
    too_many = submit(site, token_ids=[7] * 1_000_001)
    assert (too_many.status_code, too_many.json()["detail"][0]["type"]) == (422, "too_long")


# Errors


@pytest.mark.parametrize("request_id", ["1", "prefetch-0", "prefetch-99", "%20", "é", "x" * 5000])
def test_a_prefetch_that_there_was_not(site: StorageSite, request_id: str) -> None:
    answer = site.ask("GET", f"/cache/prefetches/{request_id}")
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith("no prefetch has request_id '")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model_name": "a@b"}, "model_name must not contain '@' (got 'a@b')"),
        ({"model_name": ""}, "model_name must have 1 to 4096 characters (got 0)"),
        ({"cache_salt": "a/b"}, "cache_salt must not contain frozenset({'/'}) (got 'a/b')"),
        ({"source_tier": "l1"}, "a prefetch goes from source_tier 'l2' to target_tier 'l1' only"),
        ({"target_tier": "l2"}, "a prefetch goes from source_tier 'l2' to target_tier 'l1' only"),
    ],
)
def test_what_cannot_be_prefetched(site: StorageSite, fields: dict[str, Any], text: str) -> None:
    answer = submit(site, **fields)
    assert (answer.status_code, answer.json()) == (400, {"detail": text})


@pytest.mark.parametrize("fields", [
    {"token_ids": [-1]}, {"token_ids": [1 << 32]}, {"token_ids": ["1"]}, {"token_ids": [True]}, {"token_ids": [1.0]},
    {"token_ids": None}, {"token_ids": "12"}, {"token_ids": [[1]]}, {"world_size": 0}, {"world_size": -1},
    {"world_size": 256}, {"world_size": "1"}, {"world_size": True}, {"model_name": None}, {"model_name": 1},
    {"cache_salt": None}, {"source_tier": 1},
])  # fmt: skip
def test_bodies_of_another_form(fields: dict[str, Any]) -> None:
    body = {"model_name": "m", "world_size": 1, "token_ids": [1], **fields}
    answer = ask("POST", "/cache/prefetches", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 422
    (name,) = fields
    assert answer.json()["detail"][0]["loc"][:2] == ["body", name]


def test_without_an_engine() -> None:
    body = {"model_name": "m", "world_size": 1, "token_ids": [1]}
    for answer in (ask("POST", "/cache/prefetches", json=body), ask("GET", "/cache/prefetches/1")):
        assert (answer.status_code, answer.json()) == (503, {"detail": "engine not initialized"})
