"""GET and DELETE /cache/objects: both tiers, on the real application with a real engine."""

from __future__ import annotations

import asyncio
import pathlib
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from lmcache.core.keys import ObjectKey
from lmcache.engine import l1_objects
from lmcache.l1 import by_key
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import Place
from lmcache.protocol.blobs import split_places
from lmcache.protocol.messages import ReserveStatus
from lmcache.testing.waiting import PATIENCE_S
from tests.http.no_engine import ask
from tests.http.storage_site import KV_RANK, MOCK, UNIT_BYTES, StorageSite, encoded, make_key, storage_site

OWNER = 7


@pytest.fixture
def site(pool_folder: pathlib.Path) -> Iterator[StorageSite]:
    with storage_site(pool_folder, [MOCK]) as found:
        yield found


def write_l1(site: StorageSite, key: ObjectKey, root: bytes = b"r" * 32, commits: bool = True) -> Place:
    """An object as a worker would store it; not to L2."""
    l1 = site.engine.pool.l1
    namespace = NamespaceKey(key.model_name, root, key.cache_salt)
    rank_group = (key.kv_rank, key.object_group_id)
    result = l1.reserve(namespace, rank_group, OWNER, [key.chunk_hash], UNIT_BYTES)
    assert list(result.statuses) == [ReserveStatus.RESERVED]
    slot, word, _, length = split_places(l1.places(result.slots))[0]
    place = Place(slot, word, length)
    if commits:
        assert l1.commit(OWNER, [place]) == [slot]
    return place


def lock(site: StorageSite, key: ObjectKey, root: bytes = b"r" * 32) -> Place:
    namespace = NamespaceKey(key.model_name, root, key.cache_salt)
    place = site.engine.pool.l1.lock_key(namespace, (key.kv_rank, 0), key.chunk_hash, retain=False)
    assert place is not None
    return place


def l1_keys(site: StorageSite, query: str = "") -> list[dict[str, Any]]:
    found, token = [], ""
    while True:
        page = site.ask("GET", f"/cache/objects?tier=l1&page_token={token}&{query}").json()
        assert (page["adapter"], page["shared"]) == (None, False)
        assert all(entry["size_bytes"] == UNIT_BYTES for entry in page["entries"])
        found += [entry["key"] for entry in page["entries"]]
        if page["next_page_token"] is None:
            return found
        token = page["next_page_token"]


def remove(site: StorageSite, keys: Sequence[ObjectKey], **fields: Any) -> dict[str, Any]:
    answer = site.ask("DELETE", "/cache/objects", json={"keys": [encoded(key) for key in keys], **fields})
    assert answer.status_code == 200
    site.engine.pool.l1.check_integrity()
    found: dict[str, Any] = answer.json()
    return found


def done(deleted: int, skipped: int) -> dict[str, Any]:
    return {"deleted": deleted, "skipped": skipped, "ok": True}


# Listing


def test_l2_is_listed_as_under_the_old_name(site: StorageSite) -> None:
    site.put([make_key(number) for number in range(3)])
    old = site.ask("GET", "/l2/keys?page_size=2").json()
    for query in ("", "&tier=l2"):
        assert site.ask("GET", f"/cache/objects?page_size=2{query}").json() == {**old, "shared": False}


def test_a_shared_backend_is_told(site: StorageSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.tier().adapter, "is_shared", True)
    assert site.ask("GET", "/cache/objects").json()["shared"] is True


@pytest.mark.parametrize("objects_per_slice", [512, 2])
@pytest.mark.parametrize("page_size", [1, 2, 7, 5000])
def test_l1_is_listed_page_by_page(
    site: StorageSite, page_size: int, objects_per_slice: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_key, "_OBJECTS_PER_SLICE", objects_per_slice)
    monkeypatch.setattr(by_key, "_RECORDS_PER_SLICE", 7 * objects_per_slice)
    keys = [make_key(number, model, salt) for number in range(3) for model in ("a", "b") for salt in ("", "s")]
    for key in keys:
        write_l1(site, key)
    write_l1(site, make_key(50), commits=False)
    listed = l1_keys(site, f"page_size={page_size}")
    assert sorted(map(str, listed)) == sorted(str(encoded(key)) for key in keys)
    of_b = l1_keys(site, f"page_size={page_size}&model_name=b")
    assert sorted(map(str, of_b)) == sorted(str(encoded(key)) for key in keys if key.model_name == "b")
    assert site.ask("GET", "/cache/objects").json()["entries"] == []


def test_an_empty_l1_is_listed_without_adapters(pool_folder: pathlib.Path) -> None:
    with storage_site(pool_folder) as site:
        assert l1_keys(site) == []


@pytest.mark.parametrize("tier", ["all", "l3", "", "L1"])
def test_tiers_that_cannot_be_listed(tier: str) -> None:
    answer = ask("GET", f"/cache/objects?tier={tier}")
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (422, "enum")


# Deleting


def test_l2_by_default(site: StorageSite) -> None:
    keys = [make_key(number) for number in range(3)]
    site.put(keys)
    write_l1(site, keys[0])
    assert remove(site, [*keys[:2], keys[0], make_key(9)]) == done(2, 1)
    assert site.listed() == [encoded(keys[2])]
    assert l1_keys(site) == [encoded(keys[0])]


def test_what_l2_is_loading_stays_force_or_not(site: StorageSite) -> None:
    site.put([make_key(1)])
    site.tier().adapter.lookup([make_key(1)])
    assert remove(site, [make_key(1)], force=True) == done(0, 1)
    assert site.listed() == [encoded(make_key(1))]


def test_l1_under_every_root_of_the_tenant(site: StorageSite) -> None:
    keys = [make_key(1), make_key(1, cache_salt="s"), make_key(1, "other"), make_key(1, kv_rank=KV_RANK + 1)]
    for key in keys:
        for root in (b"r" * 32, b"q" * 32):
            write_l1(site, key, root)
    site.put([keys[0]])
    assert remove(site, [keys[0]], tier="l1") == done(1, 0)
    assert len(l1_keys(site)) == 6
    assert encoded(keys[0]) not in l1_keys(site)
    assert site.listed() == [encoded(keys[0])]
    assert remove(site, keys, tier="l1") == done(3, 1)
    assert l1_keys(site) == []
    assert site.engine.pool.l1.usage_bytes_by_salt() == {}


def test_l1_spares_what_is_in_use(site: StorageSite) -> None:
    locked, written, idle = make_key(1), make_key(2), make_key(3)
    write_l1(site, locked)
    held = lock(site, locked)
    place = write_l1(site, written, commits=False)
    write_l1(site, idle)
    assert remove(site, [locked, written, idle], tier="l1") == done(1, 2)
    assert l1_keys(site) == [encoded(locked)]
    l1 = site.engine.pool.l1
    assert l1.commit(OWNER, [place]) == [place.slot]
    l1.unlock([held])
    assert remove(site, [locked, written, idle], tier="l1") == done(2, 1)
    assert l1_keys(site) == []


def test_force_takes_what_is_in_use(site: StorageSite) -> None:
    locked, written = make_key(1), make_key(2)
    write_l1(site, locked)
    held = lock(site, locked)
    place = write_l1(site, written, commits=False)
    assert remove(site, [locked, written], tier="l1", force=True) == done(2, 0)
    l1 = site.engine.pool.l1
    assert not l1.holds(held)
    assert l1.commit(OWNER, [place]) == []
    assert l1.report()["quarantined_count"] == 0
    assert l1_keys(site) == []


def test_one_root_locked_and_another_not(site: StorageSite) -> None:
    write_l1(site, make_key(1), b"r" * 32)
    write_l1(site, make_key(1), b"q" * 32)
    held = lock(site, make_key(1))
    assert remove(site, [make_key(1)], tier="l1") == done(0, 1)
    assert len(l1_keys(site)) == 1
    site.engine.pool.l1.unlock([held])


def test_all_tiers(site: StorageSite) -> None:
    keys = [make_key(number) for number in range(4)]
    site.put(keys[:2])
    for key in keys[1:3]:
        write_l1(site, key)
    assert remove(site, keys, tier="all") == done(3, 1)
    assert (site.listed(), l1_keys(site)) == ([], [])


def test_all_tiers_where_there_is_no_l2(pool_folder: pathlib.Path) -> None:
    with storage_site(pool_folder) as site:
        write_l1(site, make_key(1))
        assert remove(site, [make_key(1)], tier="all") == done(1, 0)
        answer = site.ask("DELETE", "/cache/objects", json={"keys": [], "tier": "all", "adapter": "mock"})
        assert answer.status_code == 503


def test_removals_are_told(site: StorageSite) -> None:
    write_l1(site, make_key(1, cache_salt="s"))
    remove(site, [make_key(1, cache_salt="s")], tier="l1")
    assert site.engine.pool.l1.take_removed() == []  # somebody has taken note already


@pytest.mark.parametrize("body", [
    {"tier": "l3"}, {"tier": None}, {"tier": 1}, {"force": 1}, {"force": "true"}, {"adapter": 1},
])  # fmt: skip
def test_bodies_of_another_form(body: dict[str, Any]) -> None:
    assert ask("DELETE", "/cache/objects", json={"keys": [], **body}).status_code == 422


def test_many_keys_while_others_ask(site: StorageSite, monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun, may_go_on = threading.Event(), threading.Event()

    def pause(seconds: float) -> None:
        has_begun.set()
        assert may_go_on.wait(PATIENCE_S)

    monkeypatch.setattr(l1_objects, "time", SimpleNamespace(sleep=pause))
    keys = [make_key(number) for number in range(10_000)]
    for key in keys[:60]:
        write_l1(site, key)

    async def conversation(http: httpx.AsyncClient) -> dict[str, Any]:
        body = {"keys": [encoded(key) for key in keys], "tier": "l1"}
        deletion = asyncio.create_task(http.request("DELETE", "/cache/objects", json=body))
        assert await asyncio.to_thread(has_begun.wait, PATIENCE_S)
        assert (await http.get("/status")).status_code == 200
        assert not deletion.done()
        may_go_on.set()
        answer: dict[str, Any] = (await deletion).json()
        return answer

    assert site.talk(conversation) == done(60, 9940)
