"""The loops of a real server: their levels and intervals, and one that really stalls because something holds the
engine's mutex."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from lmcache.engine.management import LivenessConfig
from lmcache.server.local_server import reap_interval_s
from lmcache.testing.waiting import wait_until
from tests.server.running import RunningServer, running_server

_MOCK = '{"type": "mock", "max_size_gb": 1}'
_EVICTION = "lmcache-l1-eviction"
_REAPER = "lmcache-mp-worker-reaper"
# Name, level, interval.
_LOOPS = {
    (_EVICTION, "critical", 1.0), ("lmcache-l2-store", "high", 1.0), ("lmcache-l2-prefetch", "high", 1.0),
    ("lmcache-l2-eviction", "high", 1.0), ("lmcache-l2-scrub", "low", 1.0), (_REAPER, "medium", 5.0),
}  # fmt: skip
# Longer than anything here takes.
_SCRIPT_TIMEOUT_S = 600
_HOLD = b"""
import time
app.state.lets_go = []
with app.state.engine.mutex:
    app.state.holds = True
    while not app.state.lets_go:
        time.sleep(0.01)
"""
_LET_GO = b"app.state.lets_go.append(True)"
_HOLDS = b"result = app.state.holds"


@pytest.fixture(scope="module")
def loops(make_pool_folder: Callable[[], pathlib.Path]) -> Iterator[RunningServer]:
    flags = ("--l2-adapter", _MOCK, "--l2-scrub-objects-per-second", "1", "--script-allowed-imports", "time")
    timeout = ("--http-script-timeout-seconds", str(_SCRIPT_TIMEOUT_S))
    with running_server(make_pool_folder(), *flags, *timeout) as found:
        yield found


@pytest.mark.parametrize(
    ("timeout_s", "interval_s"), [(0, 5.0), (30.0, 5.0), (120.0, 5.0), (1e9, 5.0), (20.0, 5.0), (8.0, 2.0)]
)
def test_silence_is_looked_for_every_quarter_of_its_limit_and_every_five_seconds_at_least(
    timeout_s: float, interval_s: float
) -> None:
    assert reap_interval_s(LivenessConfig(timeout_s)) == interval_s


def test_levels_and_intervals(loops: RunningServer) -> None:
    body = loops.http.get("/periodic-threads").json()
    assert {(thread["name"], thread["level"], thread["interval"]) for thread in body["threads"]} == _LOOPS
    totals = {level: counts["total"] for level, counts in body["summary"]["by_level"].items()}
    assert totals == {"critical": 1, "high": 3, "medium": 1, "low": 1}
    high = loops.http.get("/periodic-threads?level=high").json()["threads"]
    assert {thread["name"] for thread in high} == {name for name, level, _ in _LOOPS if level == "high"}


class Holder:
    """A script in the server's process that holds the engine's mutex until it is told to let go."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=self._hold, name="test-holder")

    def _hold(self) -> None:
        with httpx.Client(base_url=self._server.http.base_url, timeout=_SCRIPT_TIMEOUT_S) as http:
            http.post("/run_script", files={"script": ("hold.py", _HOLD)})

    def __enter__(self) -> Holder:
        self._thread.start()
        wait_until(lambda: run(self._server, _HOLDS) == "True")
        return self

    def __exit__(self, *_: object) -> None:
        wait_until(lambda: run(self._server, _LET_GO) == "Script executed successfully")
        self._thread.join()


def run(server: RunningServer, script: bytes) -> str:
    return server.http.post("/run_script", files={"script": ("s.py", script)}).text


def health(server: RunningServer) -> dict[str, Any]:
    answer = server.http.get("/periodic-threads-health")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def stalled(server: RunningServer) -> set[str]:
    return {thread["name"] for thread in health(server)["unhealthy_threads"]}


def test_a_loop_that_really_stalls_is_named_until_it_goes_on(loops: RunningServer) -> None:
    wait_until(lambda: health(loops)["healthy"])
    with Holder(loops):
        wait_until(lambda: _EVICTION in stalled(loops))
        found = health(loops)
        assert (found["healthy"], found["unhealthy_count"]) == (False, len(found["unhealthy_threads"]))
        entry = next(each for each in found["unhealthy_threads"] if each["name"] == _EVICTION)
        assert set(entry) == {"name", "level", "last_run_ago", "interval"}
        assert (entry["level"], entry["interval"]) == ("critical", 1.0)
        assert entry["last_run_ago"] > 3 * entry["interval"]
        thread = loops.http.get(f"/periodic-threads/{_EVICTION}").json()
        assert (thread["is_running"], thread["is_active"]) == (True, False)
        num_runs = thread["total_runs"]
    wait_until(lambda: health(loops) == {"healthy": True, "unhealthy_count": 0, "unhealthy_threads": []})
    assert loops.http.get(f"/periodic-threads/{_EVICTION}").json()["total_runs"] > num_runs
