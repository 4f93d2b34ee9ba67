"""The internal API as its configuration changes: switched off and on, adjusted, over a real socket."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from lmcache.config.engine.views import InternalAPISettings
from lmcache.embedded.manager import WORKER
from lmcache.errors import ConfigError
from lmcache.testing.embedded_fake import FakeManager, make_manager
from lmcache.testing.ports import free_port
from lmcache.testing.waiting import PATIENCE_S, wait_until
from lmcache.v1.internal_api_server.internal_api import InternalAPI
from tests.conftest import child_env
from tests.internal_api.serving import WORKER_INDEX

_ENABLED = "internal_api_server_enabled"
_TIMEOUT = "internal_api_server_script_timeout_seconds"
_FLOOR = b"import math\nresult = math.floor(2.5)"
_INDEXES = "internal_api_server_include_index_list"


class Owned:
    """One worker with its API."""

    def __init__(self, **values: object) -> None:
        port = free_port(2)
        self.url = f"http://127.0.0.1:{port}"
        start = {"internal_api_server_port_start": port - WORKER_INDEX, _ENABLED: True}
        self.manager: FakeManager = make_manager(WORKER, {**start, **values})
        self.api = InternalAPI(self.manager, WORKER_INDEX)

    def call(self, method: str, path: str, **settings: Any) -> httpx.Response:
        """Over a connection of its own."""
        return httpx.request(method, f"{self.url}{path}", timeout=PATIENCE_S, **settings)

    def change(self, **values: object) -> httpx.Response:
        return self.call("POST", "/conf", json=values)

    def script(self, text: bytes) -> str:
        return self.call("POST", "/run_script", files={"script": ("s.py", text)}).text

    def wait_for(self, is_serving: bool) -> None:
        wait_until(lambda: self.api.is_serving is is_serving)


@pytest.fixture
def make() -> Iterator[Callable[..., Owned]]:
    made: list[Owned] = []

    def start(**values: object) -> Owned:
        made.append(Owned(**values))
        made[-1].api.start()
        return made[-1]

    yield start
    for owned in made:
        owned.api.stop()


Make = Callable[..., Owned]


@pytest.mark.parametrize("change", [{_ENABLED: False}, {_INDEXES: [0, 7]}])
def test_call_that_switches_the_api_off_is_answered(make: Make, change: dict[str, object]) -> None:
    owned = make()
    assert owned.change(**change).json() == {"updated": change}
    owned.wait_for(False)
    with pytest.raises(httpx.ConnectError):
        owned.call("GET", "/")
    key = next(iter(change))
    owned.manager.config.set(key, True if key == _ENABLED else [])
    owned.wait_for(True)
    assert owned.call("GET", "/freeze/status").status_code == 200


def test_off_and_on_at_once(make: Make) -> None:
    owned = make()
    for is_on in (False, True) * 5:
        owned.manager.config.set(_ENABLED, is_on)
    owned.manager.config.set("script_allowed_imports", ["math"])

    def has_followed() -> bool:
        try:
            return owned.script(_FLOOR) == "2"
        except httpx.TransportError:  # between off and on
            return False

    wait_until(has_followed)


@pytest.mark.parametrize("values", [{_ENABLED: False}, {_INDEXES: [0]}])
def test_what_is_not_wanted_does_not_listen(make: Make, values: dict[str, object]) -> None:
    owned = make(**values)
    assert not owned.api.is_serving
    with pytest.raises(httpx.ConnectError):
        owned.call("GET", "/")


def test_index_that_is_listed_listens(make: Make) -> None:
    assert make(**{_INDEXES: [1]}).api.is_serving


def test_script_settings_follow(make: Make) -> None:
    """With the answer to the change."""
    owned = make()
    assert owned.script(_FLOOR) == "Error executing script: Import of 'math' is not allowed"
    owned.change(script_allowed_imports=["math"])
    assert owned.script(_FLOOR) == "2"
    owned.change(internal_api_server_script_timeout_seconds=0.05)
    assert owned.script(b"while True:\n  pass") == "Error executing script: timed out after 0.05 s"


def test_access_log_follows(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    owned = make()
    caplog.set_level("INFO", "lmcache")

    owned.call("GET", "/freeze/status?before")
    owned.change(extra_config={"internal_api_server_log_level": "info"})
    owned.call("GET", "/freeze/status?while")
    owned.change(extra_config={"internal_api_server_log_level": "info", "internal_api_server_access_log": False})
    owned.call("GET", "/freeze/status?after")
    owned.api.stop()  # a line is written after the answer
    logged = [record.getMessage() for record in caplog.records if record.name.endswith("access_log")]
    assert [line.partition("GET ")[2].partition(" ")[0] for line in logged if "GET" in line] == ["/freeze/status?while"]


class SlowToFollow:
    """Stands in for a server. The thread that follows changes is slow with each of them."""

    is_serving = True

    def __init__(self) -> None:
        self.followed: list[float] = []
        self.has_begun = threading.Event()

    def follow(self, settings: InternalAPISettings) -> None:
        if threading.current_thread().name == "lmcache-internal-api":
            self.has_begun.set()
            time.sleep(0.1)
        self.followed.append(settings.scripts.timeout_s)

    def stop(self, grace_s: float = 0.0) -> None:
        """It never listened."""


def test_what_was_changed_before_is_not_followed_after_what_was_changed_later() -> None:
    manager = make_manager(WORKER, {_ENABLED: False})
    api, server = InternalAPI(manager, WORKER_INDEX), SlowToFollow()
    api.start()
    api._server = server  # type: ignore[assignment]
    manager.config.set(_ENABLED, True)
    manager.config.set(_TIMEOUT, 1)
    assert server.has_begun.wait(PATIENCE_S)
    manager.config.set(_TIMEOUT, 2)
    assert server.followed[-1] == 2
    wait_until(lambda: server.followed[-2:] == [2, 2])
    api.stop()
    assert server.followed[server.followed.index(2) :] == [2] * server.followed.count(2)


def test_start_that_fails_leaves_nothing(make: Make) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"internal_api_server_port_start {port - 1} \\+ 1 is in use"):
            make(internal_api_server_port_start=port - 1)


def test_port_that_is_taken_when_it_is_switched_on_later(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    owned = make(**{_ENABLED: False})
    port = owned.manager.config.internal_api_server_port_start + WORKER_INDEX
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        owned.manager.config.set(_ENABLED, True)
        wait_until(lambda: "the internal API is not served" in caplog.text)
    owned.manager.config.set(_ENABLED, False)
    owned.manager.config.set(_ENABLED, True)
    owned.wait_for(True)


def test_stop_may_be_repeated_and_ends_following(make: Make) -> None:
    owned = make()
    owned.api.stop()
    owned.api.stop()
    assert "lmcache-internal-api" not in {thread.name for thread in threading.enumerate()}
    owned.manager.config.set(_ENABLED, False)
    owned.manager.config.set(_ENABLED, True)
    assert not owned.api.is_serving


def test_who_does_not_serve_loads_no_server() -> None:
    code = (
        "import sys, lmcache.v1.internal_api_server.internal_api\n"
        "assert not {'fastapi', 'uvicorn', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], env=child_env(), check=True)
