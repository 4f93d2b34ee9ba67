"""A real engine stores through a real server with L2: what HTTP lists is what was stored, what it deletes is gone."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lmcache.core.keys import make_kv_rank
from lmcache.testing.nursery import Nursery
from lmcache.testing.paged_memory import CHUNK_BYTES, digest_of
from lmcache.testing.waiting import wait_until
from tests.http.engines import EngineSite, engine_site

MOCK = '{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":100}'
NUM_RANKS = 2
NAMES = ["one", "two", "three"]


@pytest.fixture(scope="module")
def site(nursery: Nursery, make_pool_folder: Callable[[], pathlib.Path]) -> Iterator[EngineSite]:
    with engine_site(make_pool_folder(), nursery, "--l2-adapter", MOCK) as found:
        yield found


def listed(site: EngineSite) -> list[dict[str, Any]]:
    answer = site.http.get("/l2/keys")
    assert answer.status_code == 200
    assert answer.json()["next_page_token"] is None
    entries: list[dict[str, Any]] = answer.json()["entries"]
    return entries


def test_what_an_engine_stores_is_listed_deleted_and_gone(site: EngineSite) -> None:
    assert site.http.get("/l2/adapters").json() == {
        "adapters": [{"index": 0, "type_name": "MockL2Adapter", "primary": True}]
    }
    engine = site.start_engine(num_ranks=NUM_RANKS)
    assert listed(site) == []
    engine.store(NAMES)
    wait_until(lambda: len(listed(site)) == NUM_RANKS * len(NAMES))

    entries = listed(site)
    expected = {
        (digest_of(name).hex(), make_kv_rank(NUM_RANKS, rank, NUM_RANKS, rank))
        for name in NAMES
        for rank in range(NUM_RANKS)
    }
    assert {(entry["key"]["chunk_hash_hex"], entry["key"]["kv_rank"]) for entry in entries} == expected
    assert all(entry["size_bytes"] > CHUNK_BYTES for entry in entries)
    assert len({entry["key"]["model_name"] for entry in entries}) == 1

    used_gb = site.http.get("/quota/_default").json()["current_usage_gb"]
    assert used_gb * 2**30 >= sum(entry["size_bytes"] for entry in entries)

    gone = [entry["key"] for entry in entries if entry["key"]["chunk_hash_hex"] != digest_of("one").hex()]
    answer = site.http.request("DELETE", "/l2", json={"keys": gone})
    assert answer.json() == {"requested": len(gone), "adapter": "MockL2Adapter", "ok": True}
    assert {entry["key"]["chunk_hash_hex"] for entry in listed(site)} == {digest_of("one").hex()}
    # L1 is not touched under the documented name; under the later one it is, if that is said.
    assert engine.read(NAMES) == len(NAMES)
    site.wait_until_unlocked()
    keys = [entry["key"] for entry in entries]
    assert site.http.request("DELETE", "/cache/objects", json={"keys": keys, "tier": "all"}).json() == {
        "deleted": len(keys), "skipped": 0, "ok": True,
    }  # fmt: skip
    assert (listed(site), engine.read(NAMES)) == ([], 0)

    resized = site.http.post("/reconfigure/mock/resize", json={"size": "2GiB"}).json()
    assert (resized["status"], resized["new_size_bytes"]) == ("ok", 2 << 30)
