"""The internal API as its configuration changes: switched off and on, adjusted, over a real socket."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from lmcache.embedded.manager import WORKER
from lmcache.errors import ConfigError
from lmcache.testing.embedded_fake import FakeManager, make_manager
from lmcache.v1.internal_api_server.internal_api import InternalAPI
from tests.conftest import child_env
from tests.internal_api.serving import WORKER_INDEX, free_port

_PATIENCE_S = 20.0
_ENABLED = "internal_api_server_enabled"
_FLOOR = {"script": ("s.py", b"import math\nresult = math.floor(2.5)")}
_INDEXES = "internal_api_server_include_index_list"


class Owned:
    """One worker with its API."""

    def __init__(self, **values: object) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        start = {"internal_api_server_port_start": port - WORKER_INDEX, _ENABLED: True}
        self.manager: FakeManager = make_manager(WORKER, {**start, **values})
        self.api = InternalAPI(self.manager, WORKER_INDEX)

    def change(self, **values: object) -> httpx.Response:
        return httpx.post(f"{self.url}/conf", json=values)

    def wait_for(self, is_serving: bool) -> None:
        wait_until(lambda: self.api.is_serving is is_serving)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


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
        httpx.get(owned.url)
    key = next(iter(change))
    owned.manager.config.set(key, True if key == _ENABLED else [])
    owned.wait_for(True)
    assert httpx.get(f"{owned.url}/freeze/status").status_code == 200


def test_off_and_on_at_once(make: Make) -> None:
    owned = make()
    for is_on in (False, True) * 5:
        owned.manager.config.set(_ENABLED, is_on)
    owned.manager.config.set("script_allowed_imports", ["math"])

    def has_followed() -> bool:
        try:
            return httpx.post(f"{owned.url}/run_script", files=_FLOOR).text == "2"
        except httpx.TransportError:  # between off and on
            return False

    wait_until(has_followed)


@pytest.mark.parametrize("values", [{_ENABLED: False}, {_INDEXES: [0]}])
def test_what_is_not_wanted_does_not_listen(make: Make, values: dict[str, object]) -> None:
    owned = make(**values)
    assert not owned.api.is_serving
    with pytest.raises(httpx.ConnectError):
        httpx.get(owned.url)


def test_index_that_is_listed_listens(make: Make) -> None:
    assert make(**{_INDEXES: [1]}).api.is_serving


def test_script_settings_follow(make: Make) -> None:
    owned = make()
    script = dict(_FLOOR)

    def run() -> str:
        return httpx.post(f"{owned.url}/run_script", files=script).text

    assert run() == "Error executing script: Import of 'math' is not allowed"
    owned.change(script_allowed_imports=["math"])
    wait_until(lambda: run() == "2")
    owned.change(internal_api_server_script_timeout_seconds=0.05)
    script["script"] = ("s.py", b"while True:\n  pass")
    wait_until(lambda: run() == "Error executing script: timed out after 0.05 s")


def test_access_log_follows(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    owned = make()
    caplog.set_level("INFO", "lmcache")

    def is_logged() -> bool:
        caplog.clear()
        httpx.get(f"{owned.url}/freeze/status")
        return any("GET /freeze/status" in record.getMessage() for record in caplog.records)

    assert not is_logged()
    owned.change(extra_config={"internal_api_server_log_level": "info"})
    wait_until(is_logged)
    owned.change(extra_config={"internal_api_server_log_level": "info", "internal_api_server_access_log": False})
    wait_until(lambda: not is_logged())


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
    owned.manager.config.set(_ENABLED, False)
    owned.manager.config.set(_ENABLED, True)
    assert not owned.api.is_serving


def test_who_does_not_serve_loads_no_server() -> None:
    code = (
        "import sys, lmcache.v1.internal_api_server.internal_api\n"
        "assert not {'fastapi', 'uvicorn', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], env=child_env(), check=True)
