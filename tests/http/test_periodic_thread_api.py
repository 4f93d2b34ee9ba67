"""The endpoints on periodic threads: the real loops, filters, and a loop that really stalls."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from lmcache.telemetry.periodic import PeriodicThread, PeriodicThreadRegistry, ThreadLevel
from lmcache.testing.waiting import PATIENCE_S, wait_until
from tests.conftest import FakeClock
from tests.http.in_process import ask, common_app

_NEVER_S = 3600.0
_THREAD_KEYS = [
    "name", "level", "interval", "init_wait", "is_running", "is_active", "last_run_time", "last_run_ago",
    "total_runs", "failed_runs", "success_rate", "last_summary",
]  # fmt: skip


@pytest.fixture
def registry() -> Iterator[PeriodicThreadRegistry]:
    registry = PeriodicThreadRegistry()
    yield registry
    registry.stop_all()


@pytest.fixture
def app(registry: PeriodicThreadRegistry) -> FastAPI:
    return common_app("periodic_thread_api", periodic_threads=registry)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What a body under test waits for."""
    event = threading.Event()
    yield event
    event.set()


def add(registry: PeriodicThreadRegistry, name: str, level: ThreadLevel, **settings: Any) -> PeriodicThread:
    settings = {"interval_s": _NEVER_S, "body": dict, **settings}
    thread = PeriodicThread(f"lmcache-test-{name}", level, **settings)
    registry.start(thread)
    return thread


def wait_for_health(app: FastAPI, is_healthy: bool) -> dict[str, Any]:
    health: dict[str, Any] = {}

    def is_so() -> bool:
        answer = ask(app, "GET", "/periodic-threads-health")
        assert answer.status_code == 200
        health.update(answer.json())
        return health["healthy"] is is_healthy

    wait_until(is_so)
    return health


def wait_until_active(http: httpx.Client) -> None:
    """A loop whose thread is kept waiting by the machine is not active meanwhile."""
    wait_until(lambda: all(thread["is_active"] for thread in http.get("/periodic-threads").json()["threads"]))


def test_loops_of_a_real_server(http: httpx.Client) -> None:
    wait_until_active(http)
    answer = http.get("/periodic-threads")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    body = answer.json()
    assert list(body) == ["summary", "threads"]
    levels = {thread["name"]: thread["level"] for thread in body["threads"]}
    assert levels["lmcache-l1-eviction"] == "critical"
    assert levels["lmcache-mp-worker-reaper"] == "medium"
    assert all(list(thread) == _THREAD_KEYS for thread in body["threads"])
    summary, num = body["summary"], len(body["threads"])
    assert [summary[key] for key in ("total_count", "running_count", "active_count")] == [num] * 3
    assert list(summary["by_level"]) == ["critical", "high", "medium", "low"]
    for level, counts in summary["by_level"].items():
        of_level = sum(found == level for found in levels.values())
        assert counts == {"total": of_level, "running": of_level, "active": of_level}


def test_level_of_a_real_server(http: httpx.Client) -> None:
    threads = http.get("/periodic-threads?level=critical").json()["threads"]
    assert "lmcache-l1-eviction" in [thread["name"] for thread in threads]
    assert {thread["level"] for thread in threads} == {"critical"}


def test_healthy_server(http: httpx.Client) -> None:
    wait_until_active(http)
    answer = http.get("/periodic-threads-health")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {"healthy": True, "unhealthy_count": 0, "unhealthy_threads": []}


def test_one_thread_of_a_real_server(http: httpx.Client) -> None:
    wait_until(lambda: http.get("/periodic-threads/lmcache-l1-eviction").json()["total_runs"])
    wait_until_active(http)
    thread = http.get("/periodic-threads/lmcache-l1-eviction").json()
    assert list(thread) == _THREAD_KEYS
    assert (thread["is_running"], thread["is_active"], thread["success_rate"]) == (True, True, 100.0)
    assert (thread["interval"], thread["init_wait"], thread["failed_runs"]) == (1.0, 0.0, 0)
    assert abs(thread["last_run_time"] - time.time()) < 60
    assert 0 <= thread["last_run_ago"] < 60
    assert list(thread["last_summary"]) == ["timestamp", "duration_ms", "success", "message", "extra_info"]


def test_unknown_thread(http: httpx.Client) -> None:
    answer = http.get("/periodic-threads/storage-flush")
    assert (answer.status_code, answer.json()) == (404, {"error": "Thread not found: storage-flush"})


@pytest.mark.parametrize("level", ["urgent", "CRITICAL!", "0"])
def test_unknown_level(http: httpx.Client, level: str) -> None:
    answer = http.get("/periodic-threads", params={"level": level})
    expected = {"error": f"Invalid level: {level}. Valid values: critical, high, medium, low"}
    assert (answer.status_code, answer.json()) == (400, expected)


@pytest.mark.parametrize("name", ["running_only", "active_only"])
def test_filter_that_is_no_truth_value(http: httpx.Client, name: str) -> None:
    answer = http.get("/periodic-threads", params={name: "perhaps"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", name]


def test_filters_concern_the_list_and_not_the_summary(registry: PeriodicThreadRegistry, app: FastAPI) -> None:
    add(registry, "a", ThreadLevel.CRITICAL)
    add(registry, "b", ThreadLevel.LOW)
    add(registry, "ended", ThreadLevel.LOW).stop()
    stale_clock = iter([0.0, *[1e9] * 1000])
    add(registry, "stale", ThreadLevel.LOW, init_wait_s=_NEVER_S, clock=lambda: next(stale_clock))

    def names(**parameters: object) -> str:
        body = ask(app, "GET", "/periodic-threads", params=parameters).json()
        assert body["summary"]["total_count"] == 4
        assert body["summary"]["running_count"] == 3
        assert body["summary"]["active_count"] == 2
        assert body["summary"]["by_level"]["low"] == {"total": 3, "running": 2, "active": 1}
        assert body["summary"]["by_level"]["high"] == {"total": 0, "running": 0, "active": 0}
        return " ".join(thread["name"].removeprefix("lmcache-test-") for thread in body["threads"])

    assert names() == "a b ended stale"
    assert names(level="Critical") == "a"
    assert names(level="high") == ""
    assert names(running_only="true") == "a b stale"
    assert names(active_only="true") == "a b"
    assert names(active_only="true", level="low") == "b"


def test_thread_that_never_ran(registry: PeriodicThreadRegistry, app: FastAPI) -> None:
    add(registry, "new", ThreadLevel.HIGH, init_wait_s=_NEVER_S)
    thread = ask(app, "GET", "/periodic-threads/lmcache-test-new").json()
    assert (thread["last_run_time"], thread["last_run_ago"]) == (0.0, None)
    assert (thread["total_runs"], thread["success_rate"], thread["last_summary"]) == (0, None, None)


def test_failed_run_and_odd_extra_info_are_shown(registry: PeriodicThreadRegistry, app: FastAPI) -> None:
    def fail() -> dict[str, object]:
        raise ValueError("half a character: \udcff")

    add(registry, "odd", ThreadLevel.HIGH, body=lambda: {"ratio": float("nan"), "what": {1: object}})
    add(registry, "failing", ThreadLevel.HIGH, body=fail)
    wait_until(lambda: all(thread.total_runs for thread in registry.all()))
    odd = ask(app, "GET", "/periodic-threads/lmcache-test-odd").json()
    assert odd["last_summary"]["extra_info"] == {"ratio": "nan", "what": {"1": "<class 'object'>"}}
    failing = ask(app, "GET", "/periodic-threads/lmcache-test-failing").json()
    assert (failing["failed_runs"], failing["success_rate"]) == (1, 0.0)
    assert failing["last_summary"]["success"] is False
    assert failing["last_summary"]["message"] == r"ValueError: half a character: \udcff"


def test_documented_summary(registry: PeriodicThreadRegistry, app: FastAPI) -> None:
    for number, level in enumerate(("critical", "high", "high", "medium")):
        add(registry, str(number), ThreadLevel(level))
    assert ask(app, "GET", "/periodic-threads").json()["summary"] == {
        "total_count": 4,
        "running_count": 4,
        "active_count": 4,
        "by_level": {
            "critical": {"total": 1, "running": 1, "active": 1},
            "high": {"total": 2, "running": 2, "active": 2},
            "medium": {"total": 1, "running": 1, "active": 1},
            "low": {"total": 0, "running": 0, "active": 0},
        },
    }


def test_documented_stall(
    registry: PeriodicThreadRegistry, app: FastAPI, clock: FakeClock, release: threading.Event
) -> None:
    begun = threading.Event()

    def stall_at_second() -> dict[str, object]:
        if thread.total_runs:
            begun.set()
            release.wait()
        return {}

    thread = PeriodicThread(
        "storage-flush", ThreadLevel.CRITICAL, 5.0, stall_at_second, init_wait_s=_NEVER_S, clock=clock
    )
    registry.start(thread)
    thread.wake()
    wait_until(lambda: thread.total_runs)
    thread.wake()
    assert begun.wait(PATIENCE_S)
    clock.advance(42.5)
    assert ask(app, "GET", "/periodic-threads-health").json() == {
        "healthy": False,
        "unhealthy_count": 1,
        "unhealthy_threads": [{"name": "storage-flush", "level": "critical", "last_run_ago": 42.5, "interval": 5.0}],
    }


@pytest.mark.parametrize("level", [ThreadLevel.CRITICAL, ThreadLevel.HIGH])
def test_stalled_loop_is_unhealthy_until_it_goes_on(
    registry: PeriodicThreadRegistry, app: FastAPI, release: threading.Event, level: ThreadLevel
) -> None:
    begun = threading.Event()

    def stall_at_third() -> dict[str, object]:
        if thread.total_runs == 2:
            begun.set()
            release.wait()
        return {}

    thread = add(registry, "stalling", level, interval_s=0.2, body=stall_at_third)
    assert begun.wait(PATIENCE_S)
    health = wait_for_health(app, False)
    assert health["unhealthy_count"] == 1
    (found,) = health["unhealthy_threads"]
    assert list(found) == ["name", "level", "last_run_ago", "interval"]
    assert (found["name"], found["level"], found["interval"]) == ("lmcache-test-stalling", level.value, 0.2)
    assert found["last_run_ago"] > 0.6
    shown = ask(app, "GET", "/periodic-threads/lmcache-test-stalling").json()
    assert (shown["is_running"], shown["is_active"], shown["total_runs"]) == (True, False, 2)
    release.set()
    wait_for_health(app, True)


@pytest.mark.parametrize("level", [ThreadLevel.MEDIUM, ThreadLevel.LOW])
def test_stalled_loop_of_less_weight_is_not_unhealthy(
    registry: PeriodicThreadRegistry, app: FastAPI, release: threading.Event, level: ThreadLevel
) -> None:
    def stall() -> dict[str, object]:
        release.wait()
        return {}

    thread = add(registry, "stalling", level, interval_s=0.001, body=stall)
    wait_until(lambda: not thread.is_active)
    assert ask(app, "GET", "/periodic-threads-health").json()["healthy"] is True


def test_loop_that_ended_is_not_stalled(registry: PeriodicThreadRegistry, app: FastAPI) -> None:
    add(registry, "ended", ThreadLevel.CRITICAL).stop()
    assert ask(app, "GET", "/periodic-threads-health").json()["healthy"] is True
