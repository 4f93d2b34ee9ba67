"""POST /run_script: what a script may do, what it answers, and every way in which it can go wrong."""

from __future__ import annotations

import asyncio
import functools
import json
import pathlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import pytest
from fastapi import FastAPI

from lmcache.config.scripts import ScriptSettings
from lmcache.testing.waiting import PATIENCE_S, wait_until
from lmcache.v1.internal_api_server import scripts
from lmcache.v1.internal_api_server.common.run_script_api import UPLOAD_BYTES_MAX
from lmcache.v1.internal_api_server.state import script_runner
from lmcache.v1.multiprocess.http_apis import status_api
from tests.http.in_process import ask, common_app, common_module, talk
from tests.server.running import running_server

_FAILED = "Error executing script: "


def run(http: httpx.Client, script: str | bytes) -> httpx.Response:
    content = script.encode() if isinstance(script, str) else script
    answer = http.post("/run_script", files={"script": ("my_script.py", content)})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    return answer


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("", "Script executed successfully"),
        ("x = 1", "Script executed successfully"),
        ("result = 6 * 7", "42"),
        ("result = None", "None"),
        ("result = list(tuple(set([str(1)]))) + [int('2'), float('3'), dict(a=4)]", "['1', 2, 3.0, {'a': 4}]"),
        ("import math\nresult = math.isqrt(16)", "4"),
        ("import os.path\nresult = os.path.join('a', 'b')", "a/b"),
        ("from math import pi as p\nresult = p > 3", "True"),
        ("result = app.title", "LMCache HTTP API"),
        ("result = app.state.engine.config.chunk_size", "256"),
        ("result = 'é\\udcff'", "é\\udcff"),
        ("# -*- coding: latin-1 -*-\nresult = '\xe9'".encode("latin-1"), "é"),
        ("def f():\n    return 5\nresult = f()", "5"),
    ],
)
def test_what_a_script_says(http: httpx.Client, script: str | bytes, text: str) -> None:
    answer = run(http, script)
    assert (answer.status_code, answer.text) == (200, text)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("result = open('/etc/passwd')", "name 'open' is not defined"),
        ("eval('1')", "name 'eval' is not defined"),
        ("1 / 0", "division by zero"),
        ("import sys", "Import of 'sys' is not allowed"),
        ("import os", "Import of 'os' is not allowed"),
        ("from os import path", "Import of 'os' is not allowed"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("from . import x", "Import of '' is not allowed"),
        ("def broken(:", "invalid syntax (<script>, line 1)"),
        ("return", "'return' outside function (<script>, line 1)"),
        (b"\xff\xfe", None),
        (b"x = 1\0", None),
        ("x" + "[0]" * 50_000, None),
        ("class X:\n    pass", "__build_class__ not found"),
    ],
)
def test_failing_script(http: httpx.Client, script: str | bytes, reason: str | None) -> None:
    answer = run(http, script)
    assert answer.status_code == 500
    assert answer.text.startswith(_FAILED)
    assert len(answer.text) > len(_FAILED)
    if reason is not None:
        assert answer.text == _FAILED + reason
    assert http.get("/healthcheck").status_code == 200


class _Odd:
    """What a script can reach in an application: things that end a process, or fail to say what they are."""

    def exit(self, *code: object) -> None:
        raise SystemExit(*code)

    def interrupt(self) -> None:
        raise KeyboardInterrupt

    def fail_silently(self) -> None:
        class SilentError(Exception):
            def __str__(self) -> str:
                raise ValueError("no text")

        raise SilentError

    @property
    def unspeakable(self) -> object:
        class Unspeakable:
            def __str__(self) -> str:
                raise SystemExit("cannot be said")

        return Unspeakable()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("app.state.odd.exit()", "SystemExit"),
        ("app.state.odd.exit(3)", "3"),
        ("app.state.odd.interrupt()", "KeyboardInterrupt"),
        ("app.state.odd.fail_silently()", "SilentError"),
        ("result = app.state.odd.unspeakable", "cannot be said"),
    ],
)
def test_nothing_a_script_raises_gets_further(script: str, reason: str) -> None:
    app = common_app("run_script_api", odd=_Odd())
    answer = ask(app, "POST", "/run_script", files={"script": script.encode()})
    assert (answer.status_code, answer.text) == (500, _FAILED + reason)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"data": {"script": "result = 1"}},
        {"data": {"script": "result = 1"}, "files": {"other": b"result = 1"}},
        {"json": {"script": "result = 1"}},
        {"content": b"result = 1"},
        {"content": b"result = 1", "headers": {"content-type": "text/x-python"}},
    ],
)
def test_no_script(http: httpx.Client, settings: dict[str, object]) -> None:
    answer = http.post("/run_script", **settings)  # type: ignore[arg-type]
    assert (answer.status_code, answer.text) == (400, "No script file provided")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=x", "multipart/form-data; boundary=b; charset=no-such-thing",
     "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 1000],
)  # fmt: skip
@pytest.mark.parametrize(
    "content", [b"junk", b"--b\r\njunk\r\n\r\n--b--", b"--x\r\nContent-Disposition: form-data\r\n\r\n"]
)
def test_malformed_form(http: httpx.Client, content_type: str, content: bytes) -> None:
    answer = http.post("/run_script", content=content, headers={"content-type": content_type})
    assert answer.status_code == 400
    assert answer.text.startswith("No script file provided")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_large_script_runs_and_a_too_large_one_does_not(http: httpx.Client) -> None:
    large = b"result = 1\n#" + b"x" * (UPLOAD_BYTES_MAX - 4096)
    assert run(http, large).text == "1"
    for size in (UPLOAD_BYTES_MAX, 4 * UPLOAD_BYTES_MAX):
        answer = run(http, b"#" * size)
        assert (answer.status_code, answer.text) == (413, "The upload must be at most 1048576 bytes")


def test_prints_go_to_the_output_of_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    app = common_app("run_script_api")
    assert ask(app, "POST", "/run_script", files={"script": b"print('hello', 1)"}).status_code == 200
    assert capsys.readouterr().out == "hello 1\n"


def test_endless_loop_of_a_script_is_ended(make_pool_folder: Callable[[], pathlib.Path]) -> None:
    with running_server(make_pool_folder(), "--http-script-timeout-seconds", "0.3") as server:
        http = server.http
        answer = run(http, "while True:\n    pass")
        assert (answer.status_code, answer.text) == (500, f"{_FAILED}timed out after 0.3 s")
        wait_until(lambda: not http.get("/status").json()["abandoned_scripts"])
        wait_until(lambda: "lmcache-script" not in http.get("/threads").text)


class _Waiting:
    """Lets scripts wait until the test says so."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.let = threading.Event()

    def __call__(self) -> None:
        self.begun.release()
        assert self.let.wait(PATIENCE_S)


@dataclass
class _OverOnceItWaits:
    """Settings for one script: its time is over as soon as it waits."""

    wait: _Waiting
    allowed_imports: tuple[str, ...] = ()

    @functools.cached_property
    def timeout_s(self) -> float:
        assert self.wait.begun.acquire(timeout=PATIENCE_S)
        return 0.05


class _Engine:
    """As much of one as /status wants."""

    def report_status(self) -> dict[str, object]:
        return {}


def _waiting_app() -> tuple[FastAPI, _Waiting]:
    wait = _Waiting()
    app = common_app(
        "run_script_api", wait=wait, script_settings=ScriptSettings(timeout_s=PATIENCE_S), engine=_Engine()
    )
    for router in (common_module("thread_api").router, status_api.router):
        app.include_router(router)
    return app, wait


def test_too_many_at_once_are_refused() -> None:
    app, wait = _waiting_app()
    upload = {"script": b"app.state.wait()\nresult = 'done'"}

    async def conversation(client: httpx.AsyncClient) -> None:
        running = [asyncio.create_task(client.post("/run_script", files=upload)) for _ in range(scripts.RUNNING_MAX)]
        for _ in running:
            await asyncio.to_thread(wait.begun.acquire)
        refused = await client.post("/run_script", files=upload)
        assert refused.status_code == 503
        assert refused.text.startswith("4 scripts are running, no more are allowed at once (0 of them")
        wait.let.set()
        assert [answer.text for answer in await asyncio.gather(*running)] == ["done"] * scripts.RUNNING_MAX
        assert (await client.post("/run_script", files=upload)).text == "done"

    talk(app, conversation)


def test_scripts_that_cannot_be_stopped_keep_their_places_until_they_end() -> None:
    app, wait = _waiting_app()
    upload = {"script": b"app.state.wait()"}

    async def num_abandoned(client: httpx.AsyncClient) -> int:
        return int((await client.get("/status")).json()["abandoned_scripts"])

    async def conversation(client: httpx.AsyncClient) -> None:
        for number in range(scripts.RUNNING_MAX):
            app.state.script_settings = _OverOnceItWaits(wait)
            assert (await client.post("/run_script", files=upload)).text == f"{_FAILED}timed out after 0.05 s"
            assert await num_abandoned(client) == number + 1
        refused = await client.post("/run_script", files=upload)
        assert (refused.status_code, "(4 of them" in refused.text) == (503, True)
        shown = (await client.get("/threads", params={"name": "lmcache-script"})).text
        assert shown.count("in _run\n") == scripts.RUNNING_MAX
        wait.let.set()
        async with asyncio.timeout(PATIENCE_S):
            while await num_abandoned(client):
                await asyncio.sleep(0.01)
        app.state.script_settings = ScriptSettings(timeout_s=PATIENCE_S)
        assert (await client.post("/run_script", files=upload)).status_code == 200

    talk(app, conversation)


def test_script_over_its_time_ends_at_its_next_line() -> None:
    app, wait = _waiting_app()
    app.state.script_settings = _OverOnceItWaits(wait)
    app.state.later = []
    answer = ask(app, "POST", "/run_script", files={"script": b"app.state.wait()\napp.state.later.append(1)"})
    assert answer.status_code == 500
    assert script_runner(app).num_abandoned == 1
    wait.let.set()
    wait_until(lambda: not script_runner(app).num_abandoned)
    assert app.state.later == []


def test_description_tells_what_to_send(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()["paths"]["/run_script"]["post"]
    schema = described["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert schema["required"] == ["script"]
    assert {"200", "400", "413", "500", "503"} <= set(described["responses"])
    assert "sandbox" in json.dumps(described)
