"""The quota endpoints on the real application with a real engine: texts, order of checks, and the usage shown."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from lmcache.core.sizes import GIB
from lmcache.engine.cache_server import EngineConfig, MPCacheServer
from lmcache.engine.pool import PoolConfig
from lmcache.memory.pool_files import Geometry
from lmcache.telemetry.metrics import MetricRegistry
from tests.http.no_engine import ask
from tests.http.storage_site import MEMORY, MOCK, UNIT_BYTES, StorageSite, make_key, storage_site
from tests.http.test_cache_objects_api import write_l1

ISOLATED_MOCK = '{"type": "mock", "max_size_gb": 1, "eviction": {"eviction_policy": "IsolatedLRU"}}'


@pytest.fixture
def site(pool_folder: pathlib.Path) -> Iterator[StorageSite]:
    with storage_site(pool_folder) as found:
        yield found


def put(site: StorageSite, salt: str, limit_gb: float = 1.0) -> None:
    assert site.ask("PUT", f"/quota/{salt}", json={"limit_gb": limit_gb}).status_code == 200


# Without usage


def test_a_quota_from_first_to_last(site: StorageSite) -> None:
    answer = site.ask("PUT", "/quota/alice", json={"limit_gb": 10.0})
    assert (answer.status_code, answer.text) == (200, '{"cache_salt":"alice","limit_gb":10.0,"status":"ok"}')
    assert site.engine.quotas.get("alice") == 10 * GIB
    shown = {"cache_salt": "alice", "limit_gb": 10.0, "current_usage_gb": 0.0, "exists": True}
    assert site.ask("GET", "/quota/alice").json() == shown
    assert site.ask("PUT", "/quota/alice", json={"limit_gb": 0.5}).json()["limit_gb"] == 0.5
    assert site.ask("GET", "/quota").json() == {"users": {"alice": {"limit_gb": 0.5, "current_usage_gb": 0.0}}}
    assert site.ask("DELETE", "/quota/alice").json() == {"cache_salt": "alice", "status": "removed"}
    assert site.ask("DELETE", "/quota/alice").json() == {"cache_salt": "alice", "status": "not_found"}
    gone = {"cache_salt": "alice", "limit_gb": 0.0, "current_usage_gb": 0.0, "exists": False}
    assert site.ask("GET", "/quota/alice").json() == gone
    assert site.ask("GET", "/quota").json() == {"users": {}}


def test_the_sentinel_is_the_empty_salt(site: StorageSite) -> None:
    assert site.ask("PUT", "/quota/_default", json={"limit_gb": 1}).json()["cache_salt"] == "_default"
    assert site.engine.quotas.list() == {"": GIB}
    assert list(site.ask("GET", "/quota").json()["users"]) == ["_default"]
    assert site.ask("GET", "/quota/_default").json()["exists"] is True
    assert site.ask("DELETE", "/quota/_default").json() == {"cache_salt": "_default", "status": "removed"}
    assert site.engine.quotas.list() == {}


def test_in_the_order_of_registration(site: StorageSite) -> None:
    for salt in ("zoe", "_default", "alice", "zoe"):
        put(site, salt)
    assert list(site.ask("GET", "/quota").json()["users"]) == ["zoe", "_default", "alice"]


@pytest.mark.parametrize(
    ("limit", "shown", "limit_bytes"),
    [
        (0, 0.0, 0),
        (-0.0, 0.0, 0),
        (3, 3.0, 3 * GIB),
        (1e-10, 1e-10, 0),
        (0.1, 0.1, int(0.1 * GIB)),
        (1 / 3, 1 / 3, int(GIB / 3)),
    ],
)
def test_limits(site: StorageSite, limit: float, shown: float, limit_bytes: int) -> None:
    """What was sent is echoed; whole bytes are kept. A limit of 0 is a quota like any other."""
    answer = site.ask("PUT", "/quota/alice", json={"limit_gb": limit})
    assert (answer.status_code, answer.json()["limit_gb"]) == (200, shown)
    assert site.engine.quotas.list() == {"alice": limit_bytes}
    assert site.ask("GET", "/quota/alice").json()["exists"] is True


_NOT_JSON = "invalid JSON body"
_NO_OBJECT = "body must be {'limit_gb': <float>}"
_NO_NUMBER = "limit_gb must be numeric"
_NOT_FINITE = "limit_gb must be finite"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", _NOT_JSON),
        (b"{", _NOT_JSON),
        (b"limit_gb=1", _NOT_JSON),
        (b'{"limit_gb": "\xff"}', _NOT_JSON),
        (b"[" * 100_000, _NOT_JSON),
        (b'{"limit_gb": ' + b"9" * 5000 + b"}", _NOT_FINITE),
        (b"null", _NO_OBJECT),
        (b"1", _NO_OBJECT),
        (b'["limit_gb"]', _NO_OBJECT),
        (b'"limit_gb"', _NO_OBJECT),
        (b"{}", _NO_OBJECT),
        (b'{"limit": 1}', _NO_OBJECT),
        (b'{"limit_gb": null}', _NO_NUMBER),
        (b'{"limit_gb": true}', _NO_NUMBER),
        (b'{"limit_gb": "10"}', _NO_NUMBER),
        (b'{"limit_gb": "nan"}', _NO_NUMBER),
        (b'{"limit_gb": [1]}', _NO_NUMBER),
        (b'{"limit_gb": {}}', _NO_NUMBER),
        (b'{"limit_gb": NaN}', _NOT_FINITE),
        (b'{"limit_gb": Infinity}', _NOT_FINITE),
        (b'{"limit_gb": -Infinity}', _NOT_FINITE),
        (b'{"limit_gb": 1e309}', _NOT_FINITE),
        (b'{"limit_gb": 1e308}', _NOT_FINITE),
        (b'{"limit_gb": 1e100}', _NOT_FINITE),
        (b'{"limit_gb": 1' + b"0" * 400 + b"}", _NOT_FINITE),
        (b'{"limit_gb": -1e309}', _NOT_FINITE),
        (b'{"limit_gb": -1}', "limit_gb must be non-negative"),
        (b'{"limit_gb": -1e-300}', "limit_gb must be non-negative"),
    ],
)
def test_bodies_that_are_no_limit(site: StorageSite, content: bytes, error: str) -> None:
    put(site, "alice", 2.0)
    answer = site.ask("PUT", "/quota/alice", content=content)
    assert (answer.status_code, answer.json()) == (400, {"error": error})
    assert site.engine.quotas.list() == {"alice": 2 * GIB}


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", None])
def test_the_content_type_does_not_matter(site: StorageSite, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    assert site.ask("PUT", "/quota/alice", content=b'{"limit_gb":1}', headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("salt", "error"),
    [
        ("a@b", "cache_salt must not contain frozenset({'@'}) (got 'a@b')"),
        ("a%5Cb", "cache_salt must not contain frozenset({'\\\\'}) (got 'a\\\\b')"),
        ("a%00b", "cache_salt must not contain frozenset({'\\x00'}) (got 'a\\x00b')"),
        ("x" * 129, "cache_salt exceeds max length 128 (got 129)"),
    ],
)
def test_salts_that_no_key_can_have(site: StorageSite, salt: str, error: str) -> None:
    for method, body in (("PUT", {"limit_gb": 1}), ("PUT", []), ("GET", None), ("DELETE", None)):
        answer = site.ask(method, f"/quota/{salt}", json=body)
        assert (answer.status_code, answer.json()) == (400, {"error": error})
    assert site.engine.quotas.list() == {}


@pytest.mark.parametrize("salt", ["x" * 128, "é", "a b", "a%2Bb", "default", "..."])
def test_other_salts(site: StorageSite, salt: str) -> None:
    put(site, salt)
    (shown,) = site.ask("GET", "/quota").json()["users"]
    assert site.ask("GET", f"/quota/{salt}").json()["cache_salt"] == shown
    assert site.ask("DELETE", f"/quota/{salt}").json()["status"] == "removed"


def test_without_an_engine() -> None:
    """Asked for before anything else."""
    for method, path in (("PUT", "/quota/a@b"), ("GET", "/quota/a"), ("DELETE", "/quota/a"), ("GET", "/quota")):
        answer = ask(method, path, content=b"{")
        assert (answer.status_code, answer.json()) == (503, {"error": "engine not initialized"})


def test_a_file_that_cannot_be_written(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    blocker = tmp_path / "not a folder"
    blocker.write_text("")
    pool = PoolConfig(pool_folder, Geometry(16 * UNIT_BYTES, 64))
    config = EngineConfig(pool, 16, quota_file=blocker / "quotas.json")
    site = StorageSite(MPCacheServer(config, MetricRegistry(), lambda peer, message: None))
    try:
        answer = site.ask("PUT", "/quota/alice", json={"limit_gb": 1})
        assert answer.status_code == 503
        assert "cannot be kept in" in answer.json()["error"]
        assert site.ask("GET", "/quota").json() == {"users": {}}
    finally:
        site.close()


def test_a_limit_for_those_without_a_quota(pool_folder: pathlib.Path) -> None:
    pool = PoolConfig(pool_folder, Geometry(16 * UNIT_BYTES, 64))
    config = EngineConfig(pool, 16, default_quota_bytes=2 * GIB)
    site = StorageSite(MPCacheServer(config, MetricRegistry(), lambda peer, message: None))
    try:
        shown = site.ask("GET", "/quota/alice").json()
        assert (shown["limit_gb"], shown["exists"]) == (2.0, False)
        assert site.ask("GET", "/quota").json() == {"users": {}}
    finally:
        site.close()


# Usage


def usage_gb(site: StorageSite) -> tuple[float, float]:
    """Of alice, who has a quota, and of bob, who has none."""
    put(site, "alice", 100)
    alice, bob = (site.ask("GET", f"/quota/{salt}").json() for salt in ("alice", "bob"))
    assert (alice["exists"], bob["exists"]) == (True, False)
    assert site.ask("GET", "/quota").json()["users"] == {
        "alice": {"limit_gb": 100.0, "current_usage_gb": alice["current_usage_gb"]},
    }  # fmt: skip
    return alice["current_usage_gb"], bob["current_usage_gb"]


def stored_gb(site: StorageSite, index: int, salt: str) -> float:
    used: float = site.engine.storage.tiers()[index].adapter.usage().bytes_by_cache_salt.get(salt, 0) / GIB
    assert used > 0
    return used


def fill(site: StorageSite, *types: str) -> None:
    """One object of alice and two of bob in L1, two and one in each adapter."""
    write_l1(site, make_key(1, cache_salt="alice"))
    for number in (1, 2):
        write_l1(site, make_key(number, cache_salt="bob"))
    for selector in types:
        site.put([make_key(number, cache_salt="alice") for number in (1, 2)], selector=selector)
        site.put([make_key(1, cache_salt="bob")], selector=selector)


L1_OBJECT_GB = UNIT_BYTES / GIB


def test_where_no_tier_evicts_by_quota_all_of_them_count(pool_folder: pathlib.Path) -> None:
    with storage_site(pool_folder, [MOCK, MEMORY]) as site:
        fill(site, "mock", "memory")
        alice, bob = usage_gb(site)
        assert alice == L1_OBJECT_GB + stored_gb(site, 0, "alice") + stored_gb(site, 1, "alice")
        assert bob == 2 * L1_OBJECT_GB + stored_gb(site, 0, "bob") + stored_gb(site, 1, "bob")


def test_only_the_tiers_that_evict_by_quota_count(pool_folder: pathlib.Path) -> None:
    with storage_site(pool_folder, [MEMORY, ISOLATED_MOCK], opens=False) as site:
        for tier in site.engine.storage.tiers():
            tier.adapter.open()
        fill(site, "mock", "memory")
        assert usage_gb(site) == (stored_gb(site, 1, "alice"), stored_gb(site, 1, "bob"))


def test_l1_counts_where_it_evicts_by_quota(pool_folder: pathlib.Path) -> None:
    with storage_site(pool_folder, [MEMORY], "IsolatedLRU") as site:
        fill(site, "memory")
        assert usage_gb(site) == (L1_OBJECT_GB, 2 * L1_OBJECT_GB)


def test_l1_and_an_adapter(pool_folder: pathlib.Path) -> None:
    with storage_site(pool_folder, [ISOLATED_MOCK], "IsolatedLRU", opens=False) as site:
        site.tier().adapter.open()
        fill(site, "mock")
        alice, bob = usage_gb(site)
        assert alice == L1_OBJECT_GB + stored_gb(site, 0, "alice")
        assert bob == 2 * L1_OBJECT_GB + stored_gb(site, 0, "bob")


def test_what_is_deleted_does_not_count(pool_folder: pathlib.Path) -> None:
    with storage_site(pool_folder, [MOCK]) as site:
        key = make_key(1, cache_salt="alice")
        site.put([key])
        assert usage_gb(site)[0] > 0
        site.delete([key])
        assert usage_gb(site)[0] == 0


def test_answers_are_json(site: StorageSite) -> None:
    def refuse(name: str) -> Any:
        raise AssertionError(name)

    put(site, "alice", 1e9)
    for path in ("/quota", "/quota/alice"):
        json.loads(site.ask("GET", path).text, parse_constant=refuse)
