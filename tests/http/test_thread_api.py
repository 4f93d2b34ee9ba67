"""GET /threads: every thread with its stack, by name and by number."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import httpx
import pytest

from lmcache.testing.waiting import wait_until_inside
from tests.http.in_process import ask, common_app, common_module, talk

_SOON_S = 30.0
_STUCK = "in stuck\n    release.wait()"


@pytest.fixture
def waiting() -> Iterator[threading.Thread]:
    release = threading.Event()

    def wait_for_the_test() -> None:
        release.wait()

    thread = threading.Thread(target=wait_for_the_test, name="Some-Waiting-Thread")
    thread.start()
    wait_until_inside(thread, "wait")
    yield thread
    release.set()
    thread.join()


def threads(**parameters: object) -> str:
    answer = ask(common_app("thread_api"), "GET", "/threads", params=parameters)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    return answer.text


def test_threads_of_a_real_server(http: httpx.Client) -> None:
    text = http.get("/threads").text
    *entries, summary = text.split("\n\n")
    assert summary == f"=== Thread Summary ===\nTotal threads: {len(entries)}"
    assert all(entry.startswith("Thread: <") for entry in entries)
    for name in ("MainThread", "lmcache-zmq-loop", "lmcache-l1-eviction", "lmcache-mp-worker-reaper"):
        (entry,) = (entry for entry in entries if f"({name}, " in entry.splitlines()[0])
        assert "\nStack trace:\n  File " in entry


def test_stack_tells_where_a_thread_is(waiting: threading.Thread) -> None:
    entry, summary = threads(name="some-waiting").split("\n\n")
    assert entry.splitlines()[:2] == [f"Thread: {waiting!r}", "Stack trace:"]
    assert "in wait_for_the_test\n    release.wait()" in entry
    assert summary == "=== Thread Summary ===\nTotal threads: 1"


def test_number_and_name_both_must_fit(waiting: threading.Thread) -> None:
    assert repr(waiting) in threads(thread_id=waiting.ident)
    nothing = "=== Thread Summary ===\nTotal threads: 0"
    assert threads(thread_id=waiting.ident, name="other") == nothing
    assert threads(thread_id=1) == threads(thread_id=-1) == threads(name="no such thread") == nothing


def test_number_0_is_all(waiting: threading.Thread) -> None:
    assert repr(waiting) in threads(thread_id=0)
    assert repr(threading.main_thread()) in threads(thread_id=0)


def test_thread_without_a_frame_says_so(monkeypatch: pytest.MonkeyPatch, waiting: threading.Thread) -> None:
    monkeypatch.setattr("sys._current_frames", dict)
    assert threads(name="some-waiting").startswith(f"Thread: {waiting!r}\nNo stack trace available\n\n")


@pytest.mark.parametrize("thread_id", ["abc", "1.5", "", "9" * 5000])
def test_number_that_is_none_is_refused(http: httpx.Client, thread_id: str) -> None:
    answer = http.get("/threads", params={"thread_id": thread_id})
    assert answer.status_code == 422
    (item,) = answer.json()["detail"]
    assert item["loc"] == ["query", "thread_id"]
    assert item["type"].startswith("int_parsing")


def test_diagnostics_answer_while_all_other_handlers_are_stuck() -> None:
    app = common_app("thread_api")
    for module in ("env_api", "loglevel_api", "metrics_api", "periodic_thread_api"):
        app.include_router(common_module(module).router)
    release = threading.Event()

    @app.get("/stuck")
    def stuck() -> None:
        release.wait()

    async def conversation(client: httpx.AsyncClient) -> None:
        waiting = [asyncio.create_task(client.get("/stuck")) for _ in range(50)]
        try:
            async with asyncio.timeout(_SOON_S):
                while _STUCK not in (await client.get("/threads")).text:
                    await asyncio.sleep(0.01)
            for path in ("/threads", "/periodic-threads-health", "/loglevel", "/env", "/metrics"):
                answer = await asyncio.wait_for(client.get(path), _SOON_S)
                assert answer.status_code == 200
        finally:
            release.set()
            await asyncio.gather(*waiting)

    talk(app, conversation)


def test_no_garbage_is_collected_while_the_frames_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could stop the whole process."""
    before, seen = gc.get_threshold(), []
    take = sys._current_frames

    def look() -> dict[int, FrameType]:
        seen.append((gc.get_threshold()[0], gc.isenabled()))
        return take()

    monkeypatch.setattr(sys, "_current_frames", look)
    assert ask(common_app("thread_api"), "GET", "/threads").status_code == 200
    assert seen == [(0, True)]
    assert gc.get_threshold() == before
