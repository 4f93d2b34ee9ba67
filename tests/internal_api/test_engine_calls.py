"""Codes and texts of the endpoints over the engine: none there, bad parameters, failures."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lmcache.errors import BackendError
from tests.internal_api.asking import scheduler, worker

_NO_ENGINE = "LMCache engine not configured."
_LOAD = {"json": {"config_path": "/c.yaml"}}
_UNAVAILABLE = [
    ("DELETE", "/cache/clear", "LMCache API is unavailable", {}),
    ("POST", "/cache/store?tokens_mock=0,10", "LMCache API is unavailable", {}),
    ("POST", "/cache/store?tokens_mock=nonsense", "LMCache API is unavailable", {}),
    ("POST", "/cache/retrieve", "LMCache API is unavailable", {}),
    ("POST", "/cache/load-fs-chunks", "/cache/load-fs-chunks API is unavailable", _LOAD),
    ("PUT", "/freeze/enable", "/freeze/enable API is unavailable", {}),
    ("PUT", "/freeze/disable", "/freeze/disable API is unavailable", {}),
    ("GET", "/freeze/status", "/freeze/status API is unavailable", {}),
    ("PUT", "/hot_cache/enable", "hot_cache API is unavailable", {}),
    ("PUT", "/hot_cache/disable", "hot_cache API is unavailable", {}),
    ("GET", "/hot_cache/status", "hot_cache API is unavailable", {}),
    ("GET", "/bypass/list", "Bypass API is unavailable", {}),
    ("PUT", "/bypass/add", "Bypass API is unavailable", {}),
    ("PUT", "/bypass/remove", "Bypass API is unavailable", {}),
    ("GET", "/backends", "/backends API is unavailable", {}),
    ("POST", "/backends", "/backends API is unavailable", {}),
    ("DELETE", "/backends/X", "/backends API is unavailable", {}),
    ("POST", "/backends/X/recreate", "/backends API is unavailable", {}),
]
_FAILED = [
    ("DELETE", "/cache/clear", "Failed to clear cache", {}),
    ("POST", "/cache/store?tokens_mock=0,10", "Failed to store cache", {}),
    ("POST", "/cache/retrieve?tokens_mock=0,10", "Failed to retrieve cache", {}),
    ("POST", "/cache/load-fs-chunks", "Failed to load chunks from FSConnector", _LOAD),
    ("PUT", "/freeze/enable", "Failed to enable freeze mode", {}),
    ("PUT", "/freeze/disable", "Failed to disable freeze mode", {}),
    ("GET", "/freeze/status", "Failed to get freeze mode status", {}),
    ("PUT", "/hot_cache/enable", "Failed to enable hot cache", {}),
    ("PUT", "/hot_cache/disable", "Failed to disable hot cache", {}),
    ("GET", "/hot_cache/status", "Failed to get hot cache status", {}),
    ("GET", "/bypass/list", "Failed to list bypassed backends", {}),
    ("PUT", "/bypass/add?backend_name=X", "Failed to add bypass backend", {}),
    ("PUT", "/bypass/remove?backend_name=X", "Failed to remove bypass backend", {}),
    ("GET", "/backends", "Failed to list backends", {}),
    ("POST", "/backends", "Failed to create backends", {}),
    ("DELETE", "/backends/X", "Failed to close backend", {}),
    ("POST", "/backends/X/recreate", "Failed to recreate backend", {}),
]
# What some bodies say besides error and message.
_EXTRA = {"/cache/store": {"exception_type"}, "/cache/retrieve": {"exception_type"},
          "/cache/load-fs-chunks": {"config_path"}}  # fmt: skip


@pytest.mark.parametrize(("method", "target", "error", "settings"), _UNAVAILABLE)
def test_without_an_engine(method: str, target: str, error: str, settings: dict[str, Any]) -> None:
    """Which is found before anything that is wrong with the parameters."""
    assert scheduler().json(method, target, 503, **settings) == {"error": error, "message": _NO_ENGINE}


@pytest.mark.parametrize(("method", "target", "error", "settings"), _FAILED)
@pytest.mark.parametrize("cause", [BackendError("the disk is gone"), ZeroDivisionError("the disk is gone")])
def test_failure_is_told_in_the_documented_form(
    method: str, target: str, error: str, settings: dict[str, Any], cause: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    asked = worker()
    asked.engine.error = cause
    body = asked.json(method, target, 500, **settings)
    assert (body.pop("error"), body.pop("message")) == (error, "the disk is gone")
    assert set(body) == _EXTRA.get(target.partition("?")[0], set())
    if "exception_type" in body:
        assert body["exception_type"] == type(cause).__name__
    # Only what nobody raised on purpose has a traceback.
    assert any(record.levelno == logging.ERROR for record in caplog.records) is isinstance(cause, ZeroDivisionError)


def test_failure_with_a_text_that_utf_8_cannot_say() -> None:
    asked = worker()
    asked.engine.error = BackendError("no file \udcff")
    assert asked.json("DELETE", "/cache/clear", 500)["message"] == "no file ?"


_INVALID = {
    "5": "tokens_mock must contain exactly 2 numbers",
    "1,2,3": "tokens_mock must contain exactly 2 numbers",
    "a,5": "invalid literal for int() with base 10: 'a'",
    ",": "invalid literal for int() with base 10: ''",
    "5,5": "start must be less than end",
    "-2,5": "tokens are numbers from 0 to 4294967295",
    "0,4294967297": "tokens are numbers from 0 to 4294967295",
    "0,99999999": "these are 99999999 tokens, at most 16777216 are taken at once",
}


@pytest.mark.parametrize(("given", "why"), _INVALID.items())
@pytest.mark.parametrize("verb", ["store", "retrieve"])
def test_malformed_tokens(verb: str, given: str, why: str) -> None:
    assert worker().json("POST", f"/cache/{verb}", 400, params={"tokens_mock": given}) == {
        "error": "Invalid tokens_mock format", "message": f"tokens_mock must be 'start,end': {why}",
    }  # fmt: skip


def test_store_reaches_the_engine() -> None:
    asked = worker()
    asked.json("POST", "/cache/store?tokens_mock=7,47")
    assert asked.engine.stored == set(range(7, 47))


def test_clear_of_one_backend_leaves_the_others() -> None:
    asked = worker()
    assert asked.json("DELETE", "/cache/clear?locations=RemoteBackend&locations=Foo")["num_removed"] == 5
    assert asked.json("DELETE", "/cache/clear?locations=Foo")["num_removed"] == 0
    assert asked.engine.num_objects == {"LocalCPUBackend": 5, "RemoteBackend": 0}
    # A body, which some clients send, is not read.
    assert asked.json("DELETE", "/cache/clear", json={"request_configs": {}})["num_removed"] == 5


def test_freeze_and_hot_cache_reach_the_engine() -> None:
    asked = worker()
    asked.json("PUT", "/freeze/enable")
    asked.json("PUT", "/hot_cache/disable")
    assert asked.engine.is_frozen
    assert not asked.engine.has_hot_cache


def test_bypass_wants_a_name() -> None:
    for target in ("/bypass/add", "/bypass/remove", "/bypass/add?backend_name="):
        expected = {"error": "Missing parameter", "message": "backend_name is required"}
        assert worker().json("PUT", target, 400) == expected


def test_bypass_twice_says_so() -> None:
    asked = worker()
    for was_bypassed in (False, True):
        body = asked.json("PUT", "/bypass/add?backend_name=RemoteBackend")
        assert body["was_already_bypassed"] is was_bypassed
    for was_bypassed in (True, False):
        assert asked.json("PUT", "/bypass/remove?backend_name=RemoteBackend")["was_bypassed"] is was_bypassed


def test_backends_are_closed_opened_and_reopened() -> None:
    asked = worker()
    both = {"LocalCPUBackend": "L1Manager", "RemoteBackend": "FSAdapter"}
    assert asked.json("GET", "/backends") == both
    disk = {"LocalDiskBackend": "FSAdapter"}
    assert asked.json("POST", "/backends") == {"status": "success", "created": disk, "backends": {**both, **disk}}
    assert asked.json("DELETE", "/backends/LocalDiskBackend") == {
        "status": "success", "message": "Backend LocalDiskBackend closed", "backends": both,
    }  # fmt: skip
    assert asked.json("POST", "/backends/RemoteBackend/recreate") == {
        "status": "success", "recreated": {"RemoteBackend": "FSAdapter"}, "backends": both,
    }  # fmt: skip
    message = "Backend 'Foo' not found. Available: ['LocalCPUBackend', 'RemoteBackend']"
    for method, target in (("DELETE", "/backends/Foo"), ("POST", "/backends/Foo/recreate")):
        assert asked.json(method, target, 404) == {"status": "not_found", "message": message, "backends": both}
    assert asked.json("DELETE", "/backends/LocalCPUBackend", 400) == {
        "error": "Failed to close backend", "message": "LocalCPUBackend cannot be closed",
    }  # fmt: skip


def test_load_fs_chunks_cuts_the_failed_keys() -> None:
    asked = worker()
    body = asked.json(
        "POST", "/cache/load-fs-chunks", json={"config_path": "/c", "max_chunks": 7, "max_failed_keys": 1}
    )
    assert (body["loaded_chunks"], body["total_files"], body["failed_keys"]) == (7, 100, ["key1"])


@pytest.mark.parametrize(
    "body",
    [{}, {"config_path": 5}, {"config_path": "/c", "max_chunks": -1}, {"config_path": "/c", "max_failed_keys": "x"}],
)
def test_load_fs_chunks_of_another_form(body: object) -> None:
    assert "detail" in worker().json("POST", "/cache/load-fs-chunks", 422, json=body)
