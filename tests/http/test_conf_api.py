"""GET /conf and /config: every group of settings as it is in effect, and no secret of it."""

from __future__ import annotations

import json
import math
import pathlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from lmcache.config.json_safe import make_json_safe, safe_asdict
from lmcache.config.mp_server import MPConfig, MPServerConfig
from lmcache.v1.multiprocess.http_apis.conf_api import router
from tests.http.in_process import ask
from tests.server.running import RunningServer

_GROUPS = ["mp", "storage_manager", "observability", "http", "coordinator"]


class _Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class _AdapterConfig:
    type: str = "s3"
    endpoint: str = "https://me:hidden@s3.example.org/bucket"
    aws_access_key_id: str = "AKIA"
    aws_secret_access_key: str | None = "hidden"
    session_token: str | None = None
    max_keys: int = 1000
    delete_keys: bool = True
    token_file: str = "/run/token"
    timeout_s: float = math.inf
    weights: tuple[float, ...] = (0.5, math.nan)
    extra: dict[Any, object] = field(default_factory=lambda: {"password": ["hidden"], 7: {"b", "a"}})


@dataclass(frozen=True, slots=True)
class _StorageConfig:
    l2_adapters: tuple[object, ...] = (_AdapterConfig(),)
    folder: pathlib.Path = pathlib.Path("/data/é")
    colour: _Colour = _Colour.RED
    odd: str = "\udcff"


_SAFE_ADAPTER = {
    "type": "s3",
    "endpoint": "https://***@s3.example.org/bucket",
    "aws_access_key_id": "***",
    "aws_secret_access_key": "***",
    "session_token": None,
    "max_keys": 1000,
    "delete_keys": True,
    "token_file": "/run/token",
    "timeout_s": "inf",
    "weights": [0.5, "nan"],
    "extra": {"password": "***", "7": ["a", "b"]},
}


def conf_of(configs: object) -> httpx.Response:
    app = FastAPI()
    app.state.configs = configs
    app.include_router(router)
    return ask(app, "GET", "/conf")


@pytest.mark.parametrize("path", ["/conf", "/config"])
def test_settings_of_a_real_server(http: httpx.Client, server: RunningServer, path: str) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    body = answer.json()
    assert list(body) == _GROUPS
    assert answer.text == json.dumps(body, indent=2, ensure_ascii=False)
    assert list(body["mp"])[:2] == ["http_host", "http_port"]
    for group in ("mp", "http"):
        assert (body[group]["http_host"], body[group]["http_port"]) == ("127.0.0.1", server.http_port)
    assert (body["mp"]["port"], body["mp"]["chunk_size"], body["mp"]["hash_algorithm"]) == (0, 256, "blake3")
    assert body["mp"]["script_allowed_imports"] == ["math", "os.path", "no_such_module"]
    assert body["storage_manager"]["l1_size_gb"] == 0.03125
    assert body["observability"]["log_level"] == "INFO"
    assert body["http"]["http_script_timeout_seconds"] == 30.0


@pytest.mark.parametrize("configs", [None, "absent"])
def test_before_there_are_settings(configs: object) -> None:
    app = FastAPI()
    if configs is None:
        app.state.configs = None
    app.include_router(router)
    answer = ask(app, "GET", "/conf")
    assert (answer.status_code, answer.json()) == (503, {"error": "configs not initialized"})


def test_adapters_are_objects_without_their_secrets() -> None:
    answer = conf_of({"storage_manager": _StorageConfig(), "plain": {"api_key": "hidden", "depth": 3}})
    assert "hidden" not in answer.text
    assert "/data/é" in answer.text
    assert answer.json() == {
        "storage_manager": {"l2_adapters": [_SAFE_ADAPTER], "folder": "/data/é", "colour": "red", "odd": "\\udcff"},
        "plain": {"api_key": "***", "depth": 3},
    }


def test_place_of_a_secret_is_shown() -> None:
    config = MPServerConfig(MPConfig("node", host="192.0.2.1", zmq_token_file="/run/zmq_token"))
    assert conf_of(config.by_name()).json()["mp"]["zmq_token_file"] == "/run/zmq_token"


def test_numbers_that_json_does_not_have_become_text() -> None:
    numbers = [math.nan, math.inf, -math.inf, 1e308, 2**70, True]
    assert make_json_safe(numbers) == ["nan", "inf", "-inf", 1e308, 2**70, True]


def test_dataclass_alone() -> None:
    assert safe_asdict(_AdapterConfig()) == _SAFE_ADAPTER
    assert make_json_safe(_AdapterConfig) == str(_AdapterConfig)
