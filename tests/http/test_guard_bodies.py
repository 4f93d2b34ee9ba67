"""Request bodies: their bound, and that none of them, however odd, is answered with a 500."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest
from fastapi import Body, FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.types import Message

from lmcache.http.errors import install_errors, sendable
from lmcache.http.guard import GuardConfig, install_guard
from tests.http.calling import ask

_BOUND = 1000


class Wanted(BaseModel):
    keys: list[int]


def _app(config: GuardConfig) -> FastAPI:
    app = FastAPI()

    @app.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.post("/model")
    async def model(body: Wanted) -> int:
        return len(body.keys)

    @app.post("/object")
    async def obj(body: dict[str, int] = Body()) -> int:
        return len(body)

    @app.post("/unread")
    async def unread() -> str:
        return "ok"

    install_errors(app)
    install_guard(app, config)
    return app


APP = _app(GuardConfig(body_bytes_max=_BOUND))
ROOMY = _app(GuardConfig())
JSON = {"content-type": "application/json"}


async def _parts(num_bytes: int) -> AsyncIterator[bytes]:
    for begin in range(0, num_bytes, 300):
        yield b"x" * min(300, num_bytes - begin)


def test_body_up_to_the_bound_is_taken_and_one_above_is_not() -> None:
    assert ask(APP, "POST", "/length", content=b"x" * _BOUND).json() == _BOUND
    answer = ask(APP, "POST", "/length", content=b"x" * (_BOUND + 1))
    assert (answer.status_code, answer.json()) == (
        413,
        {"error": f"the body is too large: at most {_BOUND} bytes are accepted"},
    )


@pytest.mark.parametrize("path", ["/length", "/model", "/object"])
def test_body_of_unknown_length_is_cut_off_while_it_arrives(path: str) -> None:
    assert ask(APP, "POST", "/length", content=_parts(_BOUND)).json() == _BOUND
    answer = ask(APP, "POST", path, content=_parts(_BOUND + 1), headers=JSON)
    assert (answer.status_code, list(answer.json())) == (413, ["error"])


def test_length_that_is_announced_suffices() -> None:
    assert ask(APP, "POST", "/unread", content=b"x", headers={"content-length": str(1 << 40)}).status_code == 413
    assert ask(APP, "POST", "/unread", content=b"x", headers={"content-length": "9" * 5000}).status_code in (200, 413)


ODD_BODIES = {
    "NaN": b'{"keys": NaN}',
    "infinities": b'{"keys": [Infinity, -Infinity, 1e999]}',
    "not UTF-8": b'{"keys": "\xff\xfe"}',
    "half a surrogate pair": b'{"keys": "\\ud800", "\\udfff": 1}',
    "half a pair as name": b'{"\\ud800": "x"}',
    "deep": b'{"keys": ' + b"[" * 200 + b"]" * 200 + b"}",
    "deep objects": b'{"keys": ' + b'{"a":' * 100 + b"1" + b"}" * 101,
    "huge int": b'{"keys": [0.5, ' + b"9" * 900 + b"]}",
    "UTF-16": '{"keys": "x"}'.encode("utf-16"),
    "empty": b"",
    "blanks": b"  ",
    "cut": b'{"keys": [',
    "NUL": b'{"keys": "\x00"}',
}


@pytest.mark.parametrize("path", ["/model", "/object"])
@pytest.mark.parametrize("kind", ODD_BODIES)
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/octet-stream", "", "a/\xff"])
def test_odd_body_is_refused_in_json(path: str, kind: str, content_type: str) -> None:
    answer = ask(APP, "POST", path, content=ODD_BODIES[kind], headers={"content-type": content_type})
    assert answer.status_code in (400, 422)
    assert "detail" in answer.json()


@pytest.mark.parametrize("depth", [1000, 100_000])
def test_body_deeper_than_the_stack_is_refused(depth: int) -> None:
    for body in (b"[" * depth + b"]" * depth, b'{"keys": ' + b"[" * depth + b"]" * depth + b"}", b'{"a":' * depth):
        assert ask(ROOMY, "POST", "/model", content=body, headers=JSON).status_code in (400, 422)


@pytest.mark.parametrize("digits", [4000, 5000, 100_000])
def test_number_of_thousands_of_digits_is_refused(digits: int) -> None:
    body = b'{"keys": ["x", ' + b"9" * digits + b"]}"
    assert ask(ROOMY, "POST", "/model", content=body, headers=JSON).status_code in (400, 422)


def test_ordinary_422_is_the_frameworks_word_for_word() -> None:
    plain = FastAPI()

    @plain.post("/model")
    async def model(body: Wanted) -> int:
        return len(body.keys)

    for body in (b"{}", b"[]", b'{"keys": [1, "x", null]}', b"{"):
        expected = ask(plain, "POST", "/model", content=body, headers=JSON)
        answer = ask(APP, "POST", "/model", content=body, headers=JSON)
        assert expected.status_code == 422
        assert (answer.status_code, answer.json()) == (422, expected.json())


def test_422_does_not_repeat_megabytes() -> None:
    assert len(json.dumps(sendable({"x" * 5000: ["y" * 5000] * 5000}))) < 200_000
    assert sendable(b"\xff" * 5000) == "\ufffd" * 1000 + "..."


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
)


@given(_JSON)
def test_whatever_is_sendable_is_json(value: object) -> None:
    json.dumps(sendable(value), allow_nan=False, ensure_ascii=False).encode("utf-8")


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_failure_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "scheme": "http", "method": "POST", "path": "/length",
        "raw_path": b"/length", "query_string": b"", "headers": [],
        "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 8080),
    }  # fmt: skip
    with caplog.at_level(logging.INFO, "lmcache.audit"):
        asyncio.run(ROOMY(scope, receive, send))
    assert sent == []
    assert ["POST /length -> 499" in line for line in caplog.messages] == [True]
