"""POST /clear-cache and POST /cache/clear on a real server with a real engine beside it: what goes, what stays."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from lmcache.config.scripts import ScriptSettings
from lmcache.testing import control as c
from lmcache.testing.faults import Action
from lmcache.testing.processes import EngineHandle
from lmcache.v1.multiprocess.http_apis import cache_control_api, status_api
from tests.http.engines import EngineSite
from tests.http.in_process import talk
from tests.http.no_engine import ask

NAMES = ["one", "two", "three"]
_PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def engine(site: EngineSite) -> EngineHandle:
    return site.start_engine()


@pytest.fixture
def stored(site: EngineSite, engine: EngineHandle) -> Iterator[EngineHandle]:
    """The three chunks are there; afterwards nothing is."""
    assert engine.store(NAMES).outcomes == ["stored"]
    assert site.num_objects() == 3
    yield engine
    site.http.post("/clear-cache")
    assert site.num_objects() == 0


def test_clear_cache_empties_l1_and_leaves_the_rest(site: EngineSite, stored: EngineHandle) -> None:
    answer = site.http.post("/clear-cache")
    assert (answer.status_code, answer.text) == (200, '{"status":"ok"}')
    assert answer.headers["content-type"] == "application/json"
    assert site.num_objects() == 0
    assert stored.read(NAMES) == 0
    assert site.instance_ids() == [0]
    assert stored.store(NAMES).num_stored == [3]
    assert stored.read(NAMES) == 3


@pytest.mark.parametrize("body", [b"", b"{", b'{"tier":"l2"}', b"\xff\xfe", b"[" * 1000])
def test_the_body_of_clear_cache_is_ignored(site: EngineSite, stored: EngineHandle, body: bytes) -> None:
    answer = site.http.post("/clear-cache", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert site.num_objects() == 0


def test_clear_cache_takes_what_is_locked_and_the_promised_load_fails(site: EngineSite, stored: EngineHandle) -> None:
    looked = stored.look("request", NAMES)
    assert looked.num_chunks == 3
    site.http.post("/clear-cache")
    assert site.num_objects() == 0
    assert stored.load(looked) == c.LoadReport(False, "it was evicted or cleared", 0)
    stored.end("request")


def test_clear_cache_hides_a_write_under_way(site: EngineSite, engine: EngineHandle) -> None:
    engine.arm("store.half", Action.STOP)
    engine.tell(c.Store(NAMES))
    assert engine.wait_for_fault(Action.STOP)
    site.http.post("/clear-cache")
    l1 = site.l1()
    assert (l1["total_object_count"], l1["write_locked_count"], l1["quarantined_count"]) == (0, 0, 3)
    engine.resume()
    assert engine.answer() == c.StoreReport(["failed"], [0])
    assert engine.read(NAMES) == 0


@pytest.mark.parametrize(
    "content", [None, b"{}", b'{"force":false}', b'{"tier":"l1"}', b'{"tier":"l1","later":1}', b"null"]
)
def test_cache_clear_keeps_what_is_locked(site: EngineSite, stored: EngineHandle, content: bytes | None) -> None:
    looked = stored.look("request", NAMES[:2])
    headers = {"content-type": "application/json"} if content else {}
    answer = site.http.post("/cache/clear", content=content, headers=headers)
    assert (answer.status_code, answer.text) == (200, '{"status":"ok","cleared":{"tier":"l1"}}')
    assert site.num_objects() == 2
    report = stored.load(looked)
    assert (report.is_ok, report.num_wrong_bytes) == (True, 0)
    stored.end("request")
    site.wait_until_unlocked()
    assert site.http.post("/cache/clear").status_code == 200
    assert site.num_objects() == 0


def test_cache_clear_leaves_a_write_under_way(site: EngineSite, engine: EngineHandle) -> None:
    engine.arm("store.half", Action.STOP)
    engine.tell(c.Store(NAMES))
    assert engine.wait_for_fault(Action.STOP)
    assert site.http.post("/cache/clear").status_code == 200
    engine.resume()
    assert engine.answer() == c.StoreReport(["stored"], [3])
    assert engine.read(NAMES) == 3
    site.http.post("/clear-cache")


def test_cache_clear_takes_what_is_locked_by_force(site: EngineSite, stored: EngineHandle) -> None:
    looked = stored.look("request", NAMES)
    answer = site.http.post("/cache/clear", json={"tier": "l1", "force": True})
    assert answer.json() == {"status": "ok", "cleared": {"tier": "l1"}}
    assert site.num_objects() == 0
    assert not stored.load(looked).is_ok
    stored.end("request")


@pytest.mark.parametrize("tier", ["l2", "all", "", "L1", " l1", "\ud800", "x" * 5000])
def test_another_tier_is_refused_and_nothing_goes(site: EngineSite, stored: EngineHandle, tier: str) -> None:
    content, headers = json.dumps({"tier": tier, "force": True}), {"content-type": "application/json"}
    answer = site.http.post("/cache/clear", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json() == {"detail": f"tier {tier[:50]!r} cannot be cleared (allowed: 'l1')"}
    assert site.num_objects() == 3


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'"l1"',
        b'{"tier":1}',
        b'{"tier":null}',
        b'{"force":1}',
        b'{"force":"true"}',
        b'{"force":NaN}',
        b"\xff",
    ],
)
def test_a_malformed_body_is_refused_and_nothing_goes(site: EngineSite, stored: EngineHandle, content: bytes) -> None:
    answer = site.http.post("/cache/clear", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "detail" in answer.json()
    assert site.num_objects() == 3


def test_without_an_engine() -> None:
    old, new = ask("POST", "/clear-cache", content=b"{"), ask("POST", "/cache/clear")
    assert (old.status_code, old.text) == (503, '{"status":"error","reason":"engine not initialized"}')
    assert (new.status_code, new.text) == (503, '{"detail":"engine not initialized"}')


@pytest.mark.parametrize("path", ["/clear-cache", "/cache/clear"])
def test_only_posts_clear(site: EngineSite, stored: EngineHandle, path: str) -> None:
    assert [site.http.request(method, path).status_code for method in ("GET", "PUT", "DELETE")] == [405] * 3
    assert site.num_objects() == 3


def test_clears_at_once_and_requests_meanwhile(site: EngineSite, stored: EngineHandle) -> None:
    """Whoever clears waits for whoever clears already; stores and reads go on between, each right or a miss."""
    codes: list[int] = []

    def clear() -> None:
        with httpx.Client(base_url=str(site.http.base_url), timeout=_PATIENCE_S) as http:
            codes.extend(http.post(path).status_code for path in ("/clear-cache", "/cache/clear") * 5)

    threads = [threading.Thread(target=clear) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        stored.store(NAMES)
        looked = stored.look("meanwhile", NAMES)
        assert not stored.load(looked).num_wrong_bytes
        stored.end("meanwhile")
    for thread in threads:
        thread.join()
    assert codes == [200] * 30


class _SlowEngine:
    """Clears when it is let."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let = threading.Event()

    def clear(self, force: bool) -> int:
        self.begun.set()
        assert self.let.wait(_PATIENCE_S)
        return 0

    def report_status(self) -> dict[str, object]:
        return {"is_healthy": True}


@pytest.mark.parametrize("path", ["/clear-cache", "/cache/clear"])
def test_clears_that_wait_for_each_other_hold_up_nobody_else(path: str) -> None:
    engine, app = _SlowEngine(), FastAPI()
    app.include_router(cache_control_api.router)
    app.include_router(status_api.router)
    app.state.engine, app.state.script_settings = engine, ScriptSettings()

    async def conversation(client: httpx.AsyncClient) -> None:
        clears = [asyncio.create_task(client.post(path)) for _ in range(60)]
        try:
            assert await asyncio.to_thread(engine.begun.wait, _PATIENCE_S)
            answer = await asyncio.wait_for(client.get("/status"), _PATIENCE_S)
        finally:
            engine.let.set()
        assert answer.json()["is_healthy"] is True
        assert {cleared.status_code for cleared in await asyncio.gather(*clears)} == {200}

    talk(app, conversation)
