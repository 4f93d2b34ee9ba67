"""The endpoints over L2 on the real application and engine: adapters bare, wrapped, and somebody else's."""

from __future__ import annotations

import asyncio
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, ReconfigureError
from lmcache.storage.call_gate import CallGate
from lmcache.storage.tier import Tier
from lmcache.testing.waiting import PATIENCE_S
from tests.http.no_engine import ask
from tests.http.storage_site import (
    FAULTY,
    MEMORY,
    MOCK,
    SILENT,
    WRAPPED_MOCK,
    FaultyL2Adapter,
    StorageSite,
    encoded,
    make_key,
    storage_site,
)

BARE_AND_WRAPPED = [MOCK, MEMORY, WRAPPED_MOCK]
KEY = {"chunk_hash_hex": "aa", "model_name": "m", "kv_rank": 0, "object_group_id": 0, "cache_salt": "user-a"}


@pytest.fixture(params=BARE_AND_WRAPPED, ids=["mock", "memory", "wrapped"])
def site(pool_folder: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[StorageSite]:
    with storage_site(pool_folder, [request.param]) as found:
        yield found


@pytest.fixture
def faulty(pool_folder: pathlib.Path, plugins: None) -> Iterator[tuple[StorageSite, FaultyL2Adapter]]:
    with storage_site(pool_folder, [FAULTY]) as found:
        adapter = found.tier().adapter
        assert isinstance(adapter, FaultyL2Adapter)
        yield found, adapter


class Follower:
    """What an adapter tells of deletions."""

    def __init__(self, site: StorageSite) -> None:
        self.deleted: list[ObjectKey] = []
        site.tier().adapter.add_listener(self)

    def on_l2_keys_stored(self, keys: Any, sizes: Any) -> None: ...
    def on_l2_keys_accessed(self, keys: Any) -> None: ...
    def on_l2_keys_evicted(self, keys: Any) -> None: ...
    def on_l2_keys_deleted(self, keys: Any, sizes: Any) -> None:
        self.deleted += keys


# GET /l2/adapters


def test_adapters_in_their_order(pool_folder: pathlib.Path, plugins: None) -> None:
    with storage_site(pool_folder, [MOCK, SILENT, MEMORY]) as site:
        expected = [
            {"index": 0, "type_name": "MockL2Adapter", "primary": True},
            {"index": 1, "type_name": "SilentL2Adapter", "primary": False},
            {"index": 2, "type_name": "MockL2Adapter", "primary": False},
        ]
        assert site.ask("GET", "/l2/adapters").json() == {"adapters": expected}
        later = [{**entry, "tier": "l2", "reconfigurable": entry["index"] != 1} for entry in expected]
        assert site.ask("GET", "/config/adapters").json() == {"adapters": later}


def test_without_adapters(pool_folder: pathlib.Path) -> None:
    with storage_site(pool_folder) as site:
        for path in ("/l2/adapters", "/config/adapters"):
            answer = site.ask("GET", path)
            assert (answer.status_code, answer.json()) == (200, {"adapters": []})
        for answer in (
            site.ask("GET", "/l2/keys"),
            site.ask("GET", "/l2/keys?adapter=mock"),
            site.ask("DELETE", "/l2", json={"keys": []}),
            site.ask("GET", "/cache/objects"),
            site.ask("DELETE", "/cache/objects", json={"keys": []}),
        ):
            assert (answer.status_code, answer.json()) == (503, {"detail": "no L2 adapters configured"})


def test_without_an_engine() -> None:
    expected = {"detail": "engine not initialized"}
    for method, path, body in (
        ("GET", "/l2/adapters", None),
        ("GET", "/l2/keys", None),
        ("DELETE", "/l2", {"keys": []}),
        ("GET", "/config/adapters", None),
        ("GET", "/cache/objects", None),
        ("DELETE", "/cache/objects", {"keys": []}),
    ):
        answer = ask(method, path, json=body)
        assert (answer.status_code, answer.json()) == (503, expected), path


def test_an_adapter_that_opens_slowly(pool_folder: pathlib.Path, plugins: None) -> None:
    with storage_site(pool_folder, [FAULTY], opens=False) as site:
        adapter = site.tier().adapter
        assert isinstance(adapter, FaultyL2Adapter)
        adapter.gate.clear()
        site.tier().start()
        assert len(site.ask("GET", "/l2/adapters").json()["adapters"]) == 1
        for path in ("/l2/keys", "/cache/objects"):
            answer = site.ask("GET", path)
            assert (answer.status_code, answer.json()) == (503, {"detail": "L2 adapter faulty is opening: not ready"})
        assert site.delete([make_key(1)]).json() == {
            "requested": 1, "adapter": "FaultyL2Adapter", "ok": False,
            "error": "L2 adapter faulty is opening: not ready",
        }  # fmt: skip
        adapter.gate.set()
        assert site.tier().wait_until_open(PATIENCE_S)
        assert site.listed() == []


# GET /l2/keys


def test_the_listing_is_what_is_stored(site: StorageSite) -> None:
    keys = [make_key(number, model) for number in range(5) for model in ("org/m", "other")]
    site.put(keys)
    answer = site.ask("GET", "/l2/keys").json()
    assert list(answer) == ["adapter", "entries", "next_page_token"]
    assert (answer["adapter"], answer["next_page_token"]) == ("MockL2Adapter", None)
    assert sorted(map(str, (entry["key"] for entry in answer["entries"]))) == sorted(str(encoded(key)) for key in keys)
    listed_bytes = sum(entry["size_bytes"] for entry in answer["entries"])
    assert listed_bytes == site.tier().adapter.usage().total_bytes_used > 0
    assert site.listed("model_name=other") == [encoded(key) for key in keys[1::2]]
    assert site.listed("model_name=org/") == []


@pytest.mark.parametrize("page_size", [1, 3, 7, 20, 21, 5000])
def test_pages_add_up_to_the_whole(site: StorageSite, page_size: int) -> None:
    keys = [make_key(number) for number in range(20)]
    site.put(keys)
    assert site.listed(f"page_size={page_size}") == [encoded(key) for key in keys]
    first = site.ask("GET", f"/l2/keys?page_size={page_size}").json()
    assert len(first["entries"]) == min(page_size, 20)


def test_500_keys_a_page_where_nothing_is_said(site: StorageSite) -> None:
    site.put([make_key(number) for number in range(501)])
    assert len(site.ask("GET", "/l2/keys?page_token=").json()["entries"]) == 500


def test_what_goes_during_a_walk_does_not_hide_what_stays(site: StorageSite) -> None:
    keys = [make_key(number) for number in range(10)]
    site.put(keys)
    first = site.ask("GET", "/l2/keys?page_size=5").json()
    site.delete(keys[2:7])
    second = site.ask("GET", f"/l2/keys?page_token={first['next_page_token']}").json()
    listed = [entry["key"] for entry in first["entries"] + second["entries"]]
    assert listed == [encoded(key) for key in keys[:5] + keys[7:]]


@pytest.mark.parametrize("token", ["0", "x", "cm93Og==", "cm93Oi0x", "%25ff", "é", "a" * 5000])
@pytest.mark.parametrize("path", ["/l2/keys", "/cache/objects", "/cache/objects?tier=l1"])
def test_a_token_that_was_never_given_out(site: StorageSite, path: str, token: str) -> None:
    answer = site.ask("GET", f"{path}{'&' if '?' in path else '?'}page_token={token}")
    assert answer.status_code == 400
    assert answer.json() == {"detail": "malformed page_token: pass the next_page_token of the page before, unchanged"}


@pytest.mark.parametrize(("size", "kind"), [
    ("0", "greater_than_equal"), ("-1", "greater_than_equal"), ("5001", "less_than_equal"), ("x", "int_parsing"),
    ("", "int_parsing"), ("1.5", "int_parsing"), ("9" * 5000, "int_parsing_size"),
])  # fmt: skip
@pytest.mark.parametrize("path", ["/l2/keys", "/cache/objects"])
def test_page_sizes_that_cannot_be(path: str, size: str, kind: str) -> None:
    answer = ask("GET", f"{path}?page_size={size}")
    assert answer.status_code == 422
    (item,) = answer.json()["detail"]
    assert (item["type"], item["loc"]) == (kind, ["query", "page_size"])
    if size == "0":
        assert item == {
            "type": "greater_than_equal", "loc": ["query", "page_size"],
            "msg": "Input should be greater than or equal to 1", "input": "0", "ctx": {"ge": 1},
        }  # fmt: skip


# Selection


def test_a_selector_is_a_class_name_or_a_type(pool_folder: pathlib.Path, plugins: None) -> None:
    with storage_site(pool_folder, [SILENT, MOCK, MEMORY]) as site:
        site.put([make_key(1)], selector="mock")
        site.put([make_key(2)], selector="memory")
        assert site.listed("adapter=mock") == site.listed("adapter=MockL2Adapter") == [encoded(make_key(1))]
        assert site.listed("adapter=memory") == [encoded(make_key(2))]
        for name in ("Mock", "MOCK", "", "fs", "no'ne", "0"):
            expected = {"detail": f"no L2 adapter with type_name={name!r}"}
            for answer in (
                site.ask("GET", f"/l2/keys?adapter={name}"),
                site.delete([], f"?adapter={name}"),
                site.ask("GET", f"/cache/objects?adapter={name}"),
                site.ask("DELETE", "/cache/objects", json={"keys": [], "adapter": name}),
                site.ask("DELETE", "/cache/objects", json={"keys": [], "adapter": name, "tier": "all"}),
            ):
                assert (answer.status_code, answer.json()) == (404, expected)
        assert site.delete([make_key(2)], "?adapter=memory").json() == {
            "requested": 1, "adapter": "MockL2Adapter", "ok": True,
        }  # fmt: skip
        assert site.listed("adapter=memory") == []
        assert site.listed("adapter=mock") != []


def test_an_adapter_that_cannot_list(pool_folder: pathlib.Path, plugins: None) -> None:
    with storage_site(pool_folder, [SILENT]) as site:
        site.put([make_key(1)])
        text = "L2 adapter 'silent' does not support listing: SilentL2Adapter does not implement list_l2_keys"
        answer = site.ask("GET", "/l2/keys")
        assert (answer.status_code, answer.json()) == (501, {"detail": text})
        answer = site.ask("GET", "/cache/objects")
        assert answer.status_code == 503
        assert answer.json() == {"detail": "SilentL2Adapter does not implement list_l2_keys"}
        # Nor can it delete; nothing is claimed to be gone.
        assert site.delete([make_key(1)]).json() == {"requested": 1, "adapter": "SilentL2Adapter", "ok": True}
        assert site.tier().adapter.lookup([make_key(1)]) == [True]


def test_an_adapter_that_cannot_list_says_so_through_its_wrapper(pool_folder: pathlib.Path, plugins: None) -> None:
    with storage_site(pool_folder, [SILENT[:-1] + ', "serde": {"type": "zstd"}}']) as site:
        answer = site.ask("GET", "/l2/keys")
        text = "L2 adapter 'silent' does not support listing: SilentL2Adapter does not implement list_l2_keys"
        assert (answer.status_code, answer.json()) == (501, {"detail": text})
        assert site.ask("GET", "/l2/adapters").json()["adapters"][0]["type_name"] == "SilentL2Adapter"


# DELETE /l2


def test_delete_takes_what_is_named_and_tells(site: StorageSite) -> None:
    keys = [make_key(number) for number in range(6)]
    site.put(keys)
    follower = Follower(site)
    absent, twice = make_key(99), keys[0]
    answer = site.delete([twice, keys[1], absent, twice])
    assert answer.status_code == 200
    assert answer.json() == {"requested": 4, "adapter": "MockL2Adapter", "ok": True}
    assert site.listed() == [encoded(key) for key in keys[2:]]
    assert sorted(follower.deleted, key=lambda key: key.chunk_hash) == keys[:2]
    assert site.delete([*keys[:2], absent]).json()["ok"]
    assert len(follower.deleted) == 2


def test_delete_leaves_what_is_being_loaded(site: StorageSite) -> None:
    keys = [make_key(number) for number in range(3)]
    site.put(keys)
    assert site.tier().adapter.lookup(keys[:1]) == [True]
    assert site.delete(keys).json() == {"requested": 3, "adapter": "MockL2Adapter", "ok": True}
    assert site.listed() == [encoded(keys[0])]
    site.tier().adapter.release(keys[:1])
    site.delete(keys)
    assert site.listed() == []


def test_every_field_of_a_key_counts(site: StorageSite) -> None:
    key = make_key(1, cache_salt="user-a")
    site.put([key])
    for change in (
        {"chunk_hash_hex": "00"}, {"chunk_hash_hex": ""}, {"model_name": "org/other"}, {"kv_rank": 1},
        {"object_group_id": 1}, {"cache_salt": ""}, {"object_group_id": 1 << 70},
    ):  # fmt: skip
        answer = site.ask("DELETE", "/l2", json={"keys": [{**encoded(key), **change}]})
        assert answer.json()["ok"]
        assert site.listed() == [encoded(key)]
    site.ask("DELETE", "/l2", json={"keys": [{**encoded(key), "later": "is ignored"}]})
    assert site.listed() == []


def test_old_clients_leave_out_group_and_salt(site: StorageSite) -> None:
    site.put([make_key(1)])
    short = {name: encoded(make_key(1))[name] for name in ("chunk_hash_hex", "model_name", "kv_rank")}
    assert site.ask("DELETE", "/l2", json={"keys": [short]}).json()["ok"]
    assert site.listed() == []


BAD_KEYS = [
    ({"chunk_hash_hex": "zz"}, "non-hexadecimal number found in fromhex() arg at position 0"),
    ({"chunk_hash_hex": "abc"}, "non-hexadecimal number found in fromhex() arg at position 3"),
    ({"model_name": "a@b"}, "model_name must not contain '@' (got 'a@b')"),
    ({"model_name": ""}, "model_name must have 1 to 4096 characters (got 0)"),
    ({"object_group_id": -1}, "object_group_id must be >= 0 (got -1)"),
    ({"kv_rank": -1}, "kv_rank must fit 32 bits (got -1)"),
    ({"kv_rank": 1 << 32}, "kv_rank must fit 32 bits (got 4294967296)"),
    ({"cache_salt": "a/b"}, "cache_salt must not contain frozenset({'/'}) (got 'a/b')"),
    ({"cache_salt": "a\x00"}, "cache_salt must not contain frozenset({'\\x00'}) (got 'a\\x00')"),
    ({"cache_salt": "x" * 129}, "cache_salt exceeds max length 128 (got 129)"),
    ({"cache_salt": "\ud800"}, "cache_salt must be valid Unicode text (it has a lone surrogate)"),
    ({"model_name": "\ud800"}, "model_name must be valid Unicode text (it has a lone surrogate)"),
]


@pytest.mark.parametrize("path", ["/l2", "/cache/objects"])
@pytest.mark.parametrize(("change", "reason"), BAD_KEYS)
def test_keys_that_break_the_rules(change: dict[str, Any], reason: str, path: str) -> None:
    """Also where there is no engine: keys are looked at first."""
    content = json.dumps({"keys": [KEY, {**KEY, **change}]})
    answer = ask("DELETE", path, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (400, {"detail": f"keys[1]: {reason}"})


def test_a_bad_key_spares_the_good_ones(site: StorageSite) -> None:
    site.put([make_key(1)])
    body = {"keys": [encoded(make_key(1)), {**KEY, "chunk_hash_hex": "zz"}]}
    assert site.ask("DELETE", "/l2?adapter=none", json=body).status_code == 400
    assert site.listed() == [encoded(make_key(1))]


@pytest.mark.parametrize("path", ["/l2", "/cache/objects"])
def test_ten_thousand_keys_at_most(path: str) -> None:
    """The batch is looked at before its keys are."""
    answer = ask("DELETE", path, json={"keys": [{**KEY, "chunk_hash_hex": "zz"}] * 10_001})
    text = "too many keys in a single request (limit=10000, got=10001)"
    assert (answer.status_code, answer.json()) == (400, {"detail": text})


def test_ten_thousand_keys(site: StorageSite) -> None:
    site.put([make_key(number) for number in range(1000)])
    assert site.delete([make_key(number) for number in range(10_000)]).json()["requested"] == 10_000
    assert site.listed() == []


@pytest.mark.parametrize("path", ["/l2", "/cache/objects"])
@pytest.mark.parametrize(("content", "loc"), [
    (b"{}", ["body", "keys"]),
    (b"", ["body"]),
    (b"[]", ["body"]),
    (b"null", ["body"]),
    (b'{"keys": 1}', ["body", "keys"]),
    (b'{"keys": null}', ["body", "keys"]),
    (b'{"keys": [1]}', ["body", "keys", 0]),
    (b'{"keys": [{"model_name": "m", "kv_rank": 0}]}', ["body", "keys", 0, "chunk_hash_hex"]),
    (b'{"keys": [{"chunk_hash_hex": 1, "model_name": "m", "kv_rank": 0}]}', ["body", "keys", 0, "chunk_hash_hex"]),
    (b'{"keys": [{"chunk_hash_hex": "", "model_name": "m", "kv_rank": "0"}]}', ["body", "keys", 0, "kv_rank"]),
    (b'{"keys": [{"chunk_hash_hex": "", "model_name": "m", "kv_rank": true}]}', ["body", "keys", 0, "kv_rank"]),
    (b'{"keys": [{"chunk_hash_hex": "", "model_name": "m", "kv_rank": NaN}]}', ["body", "keys", 0, "kv_rank"]),
    (b'{"keys": [{"chunk_hash_hex": "", "model_name": "m", "kv_rank": 1.5}]}', ["body", "keys", 0, "kv_rank"]),
])  # fmt: skip
def test_bodies_of_another_form(content: bytes, loc: list[Any], path: str) -> None:
    answer = ask("DELETE", path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == loc


def test_an_empty_body_object_is_answered_as_documented() -> None:
    item = {"type": "missing", "loc": ["body", "keys"], "msg": "Field required", "input": {}}
    assert ask("DELETE", "/l2", json={}).json() == {"detail": [item]}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BackendError("the bucket is gone"), "the bucket is gone"),
        (RuntimeError("a bug"), "RuntimeError: a bug"),
        (BackendError("a name \udc80"), "a name \udc80"),
        (ReconfigureError(409, "out of place"), "out of place"),
    ],
)
def test_a_failing_adapter(faulty: tuple[StorageSite, FaultyL2Adapter], error: Exception, text: str) -> None:
    """Deletion says so at 200, however often; listing is 503, and so it stays while the adapter is left alone."""
    site, adapter = faulty
    site.put([make_key(1)])
    adapter.error = error
    answer = site.delete([make_key(1)])
    assert answer.status_code == 200
    assert answer.json() == {"requested": 1, "adapter": "FaultyL2Adapter", "ok": False, "error": text}
    assert site.ask("GET", "/l2/keys").status_code == 503
    later = site.ask("DELETE", "/cache/objects", json={"keys": [encoded(make_key(1))]}).json()
    assert later == {"deleted": 0, "skipped": 1, "ok": False, "error": text}


def test_an_open_breaker(faulty: tuple[StorageSite, FaultyL2Adapter]) -> None:
    site, adapter = faulty
    adapter.error = BackendError("the bucket is gone")
    codes = {site.ask("GET", "/l2/keys").status_code for _ in range(6)}
    assert codes == {503}
    adapter.error = None
    text = "L2 adapter faulty is left alone after failures: the bucket is gone"
    for path in ("/l2/keys", "/cache/objects"):
        answer = site.ask("GET", path)
        assert (answer.status_code, answer.json()) == (503, {"detail": text})
    answer = site.delete([make_key(1)])
    assert (answer.status_code, answer.json()["ok"], answer.json()["error"]) == (200, False, text)


def test_an_adapter_whose_threads_hang(site: StorageSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tier, "is_stalled", True)
    answer = site.ask("GET", "/l2/keys")
    assert (answer.status_code, answer.json()) == (503, {"detail": f"L2 adapter {site.tier().name} does not answer"})


def test_a_backend_that_hangs_keeps_nobody_for_ever(faulty: tuple[StorageSite, FaultyL2Adapter]) -> None:
    """Eight calls do not come back: the ninth is told so, and the other endpoints are answered."""
    site, adapter = faulty
    site.tier().gate = CallGate("faulty", call_patience_s=0.01)
    adapter.gate.clear()

    async def conversation(http: httpx.AsyncClient) -> tuple[list[httpx.Response], list[int], list[int]]:
        stuck = [asyncio.create_task(http.get("/l2/keys")) for _ in range(8)]
        async with asyncio.timeout(PATIENCE_S):
            while adapter.num_waiting < 8:
                await asyncio.sleep(0.001)
        refused = [await http.get("/l2/keys"), await http.request("DELETE", "/l2", json={"keys": []})]
        paths = ("/status", "/quota", "/reconfigure/faulty/status", "/cache/prefetches/1", "/cache/objects?tier=l1")
        meanwhile = [(await http.get(path)).status_code for path in paths]
        adapter.gate.set()
        return refused, meanwhile, [(await task).status_code for task in stuck]

    (listing, deletion), meanwhile, late = site.talk(conversation)
    text = "L2 adapter faulty has 8 calls to answer already"
    assert (listing.status_code, listing.json()) == (503, {"detail": text})
    assert (deletion.status_code, deletion.json()["ok"], deletion.json()["error"]) == (200, False, text)
    assert meanwhile == [200, 200, 200, 404, 200]
    assert late == [200] * 8


def test_nothing_waits_for_a_slow_backend(faulty: tuple[StorageSite, FaultyL2Adapter]) -> None:
    site, adapter = faulty

    async def conversation(http: httpx.AsyncClient) -> list[int]:
        await asyncio.to_thread(adapter.counting.acquire)
        stuck = asyncio.create_task(http.post("/reconfigure/faulty/count", json={}))
        try:
            codes = [(await http.get(path)).status_code for path in ("/healthcheck", "/l2/keys", "/l2/adapters")]
            assert not stuck.done()
        finally:
            adapter.counting.release()
        return [*codes, (await stuck).status_code]

    assert site.talk(conversation) == [200] * 4
