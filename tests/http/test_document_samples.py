"""The samples of the document that need storage behind them: two adapters, S3's answers, quotas with what is used."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import GIB
from lmcache.storage.tier_life import TierState
from lmcache.testing.s3_servers import ACCESS_KEY_ID, BUCKET, REGION, SECRET_ACCESS_KEY, MotoServer
from lmcache.testing.waiting import wait_until
from tests.http.storage_site import StorageSite, encoded, storage_site

_MODEL = "meta-llama/Llama-3-8B"
# As printed, but for the digest, which is cut short there; and one more of the same tenant.
_DIGESTS = ["abc123" + 58 * "0", "def456" + 58 * "0"]
_PRINTED = {
    "chunk_hash_hex": _DIGESTS[0], "model_name": _MODEL, "kv_rank": 0, "object_group_id": 0, "cache_salt": "user-a",
}  # fmt: skip
_KEYS = [ObjectKey(bytes.fromhex(digest), _MODEL, 0, 0, "user-a") for digest in _DIGESTS]


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoServer]:
    server = MotoServer()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def site(moto: MotoServer, pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[StorageSite]:
    s3 = {
        "type": "s3", "s3_endpoint": f"s3://{BUCKET}", "s3_endpoint_url": moto.url, "s3_region": REGION,
        "aws_access_key_id": ACCESS_KEY_ID, "aws_secret_access_key": SECRET_ACCESS_KEY, "s3_num_io_threads": 4,
        "s3_prefix": pool_folder.name,
    }  # fmt: skip
    files = {"type": "fs", "base_path": str(tmp_path)}
    with storage_site(pool_folder, [json.dumps(s3), json.dumps(files)]) as found:
        wait_until(lambda: all(tier.state is TierState.ACTIVE for tier in found.engine.storage.tiers()))
        yield found


def test_adapters(site: StorageSite) -> None:
    assert site.ask("GET", "/l2/adapters").json() == {
        "adapters": [
            {"index": 0, "type_name": "S3L2Adapter", "primary": True},
            {"index": 1, "type_name": "FSL2Adapter", "primary": False},
        ]
    }


def test_keys_of_s3(site: StorageSite) -> None:
    """The walk of the printed shell loop, in pages of one."""
    site.put(_KEYS, b"kv" * 2000, "s3")
    entries: list[dict[str, Any]] = []
    token = ""
    while True:
        page = site.ask("GET", f"/l2/keys?model_name={_MODEL}&page_size=1&page_token={token}").json()
        assert (list(page), page["adapter"]) == (["adapter", "entries", "next_page_token"], "S3L2Adapter")
        entries += page["entries"]
        token = page["next_page_token"]
        if token is None:
            break
        assert isinstance(token, str)
        assert token
    assert sorted(entry["key"]["chunk_hash_hex"] for entry in entries) == _DIGESTS
    [printed] = [entry for entry in entries if entry["key"]["chunk_hash_hex"] == _DIGESTS[0]]
    assert list(printed) == ["key", "size_bytes"]
    assert printed["key"] == _PRINTED
    assert printed["size_bytes"] > 4000
    assert site.ask("GET", "/l2/keys?model_name=other").json() == {
        "adapter": "S3L2Adapter", "entries": [], "next_page_token": None,
    }  # fmt: skip


def test_deletion_from_s3(site: StorageSite, moto: MotoServer, pool_folder: pathlib.Path) -> None:
    for selector in ("s3", "fs"):
        site.put(_KEYS, selector=selector)
    assert len(moto.names(pool_folder.name)) == 2
    answer = site.delete(_KEYS)
    assert (answer.status_code, answer.json()) == (200, {"requested": 2, "adapter": "S3L2Adapter", "ok": True})
    assert moto.names(pool_folder.name) == []
    assert len(site.listed("adapter=FSL2Adapter")) == 2
    # Again, and the command line that is printed, whose key is held nowhere.
    assert site.delete(_KEYS).json() == {"requested": 2, "adapter": "S3L2Adapter", "ok": True}
    absent = {"chunk_hash_hex": "aa", "model_name": "m", "kv_rank": 0, "object_group_id": 0, "cache_salt": "user-a"}
    answer = site.ask("DELETE", "/l2", json={"keys": [absent]})
    assert answer.json() == {"requested": 1, "adapter": "S3L2Adapter", "ok": True}
    assert site.delete(_KEYS, "?adapter=FSL2Adapter").json()["adapter"] == "FSL2Adapter"
    assert site.listed("adapter=FSL2Adapter") == []


def test_quotas_with_what_is_used(site: StorageSite) -> None:
    """Of alice twice as much as of bob; of somebody without a quota nothing is listed, but can be asked for."""
    limits = {"alice": 10.0, "bob": 4.0}
    for salt, limit_gb in limits.items():
        answer = site.ask("PUT", f"/quota/{salt}", json={"limit_gb": limit_gb})
        assert answer.json() == {"cache_salt": salt, "limit_gb": limit_gb, "status": "ok"}
    held = {
        salt: [ObjectKey(bytes([number] * 32), _MODEL, 0, 0, salt) for number in range(count)]
        for salt, count in (("alice", 2), ("bob", 1), ("carol", 3))
    }
    for keys in held.values():
        site.put(keys, b"kv" * 50_000, "s3")
        site.put(keys[:1], b"kv" * 50_000, "fs")
    used_gb = {salt: listed_bytes(site, keys) / GIB for salt, keys in held.items()}
    assert used_gb["alice"] > used_gb["bob"] > 200_000 / GIB
    assert site.ask("GET", "/quota").json() == {
        "users": {salt: {"limit_gb": limits[salt], "current_usage_gb": used_gb[salt]} for salt in ("alice", "bob")}
    }
    for salt, used in used_gb.items():
        assert site.ask("GET", f"/quota/{salt}").json() == {
            "cache_salt": salt, "limit_gb": limits.get(salt, 0.0), "current_usage_gb": used, "exists": salt in limits,
        }  # fmt: skip
    assert site.ask("DELETE", "/quota/alice").json() == {"cache_salt": "alice", "status": "removed"}
    gone = site.ask("GET", "/quota/alice").json()
    assert (gone["exists"], gone["limit_gb"], gone["current_usage_gb"]) == (False, 0.0, used_gb["alice"])


def listed_bytes(site: StorageSite, keys: list[ObjectKey]) -> int:
    """What the adapters' own listings say of them."""
    names = [encoded(key) for key in keys]
    entries = [
        entry
        for selector in ("s3", "fs")
        for entry in site.ask("GET", f"/l2/keys?adapter={selector}&page_size=5000").json()["entries"]
    ]
    return sum(entry["size_bytes"] for entry in entries if entry["key"] in names)
