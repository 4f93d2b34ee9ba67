"""Every endpoint called with what its description allows and with what it does not: no answer but those described,
and no 5xx but those the documents name."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache.cli.server import ENDPOINTS_PACKAGE
from lmcache.http.registry import HTTPAPIRegistry
from lmcache.server.http_app import make_app
from tests.http.described import EXAMPLES, ODD_VALUES, RUNS_CODE, as_described, assert_no_unnamed_failure, validate
from tests.http.no_engine import NoLifecycle
from tests.http.test_guard_bodies import ODD_BODIES
from tests.server.running import RunningServer, running_server

# What the documents name: not there yet, not possible with this set-up, a script that failed.
_NAMED_5XX = {501, 503}
# With an adapter behind them, the endpoints of L2 get further than "no L2 adapters configured".
_ADAPTER = '{"type": "mock", "max_size_gb": 0.01, "mock_bandwidth_gb": 10}'


DESCRIBED = make_app({}, HTTPAPIRegistry(ENDPOINTS_PACKAGE), NoLifecycle()).openapi()
schema = schemathesis.openapi.from_dict(DESCRIBED)
# The operations that take JSON, with a value for each parameter in their paths.
_WITH_BODY = [
    (method.upper(), path.replace("{backend}", "mock").replace("{operation}", "resize").replace("{cache_salt}", "s"))
    for path, operations in DESCRIBED["paths"].items()
    for method, operation in operations.items()
    if "application/json" in operation.get("requestBody", {}).get("content", {})
]
# Fields that some endpoint takes, with what JSON as Python reads it may hold and nobody wants.
_FIELDS = ("keys", "limit_gb", "size", "adapter_index", "block_ids", "chunk_size", "token_ids", "model_name", "tier")
_VALUES = (
    *ODD_VALUES,
    '[{"chunk_hash_hex": "\\ud800", "model_name": "\\udfff", "kv_rank": 1e400}]',
    '[{"chunk_hash_hex": "aa", "model_name": "m\\ud800", "kv_rank": 99999999999999999999, "cache_salt": "\\udfff"}]',
)


@pytest.fixture(scope="module")
def fuzzed(make_pool_folder: Callable[[], pathlib.Path]) -> Iterator[RunningServer]:
    """A server of its own: log levels, quotas and metrics do not stay what they were."""
    with running_server(make_pool_folder(), "--l2-adapter", _ADAPTER) as running:
        yield running


@schema.exclude(path=RUNS_CODE).parametrize()
@as_described
def test_endpoint_answers_as_described(case: Any, fuzzed: RunningServer) -> None:
    validate(case, str(fuzzed.http.base_url), _NAMED_5XX)


def test_operations_with_bodies_are_found() -> None:
    assert {method for method, _ in _WITH_BODY} == {"POST", "PUT", "DELETE"}


@pytest.mark.parametrize(("method", "path"), _WITH_BODY)
def test_odd_body_is_refused_or_ignored(fuzzed: RunningServer, method: str, path: str) -> None:
    """One odd field beside good ones, then bodies that are odd as a whole."""
    good = {"keys": "[]", "limit_gb": "1", "block_ids": "[0]", "chunk_size": "1", "token_ids": "[1]", "world_size": "1",
            "model_name": '"m"'}  # fmt: skip
    bodies = list(ODD_BODIES.values())
    for name in _FIELDS:
        for value in _VALUES:
            fields = {**good, name: value}
            bodies.append(("{" + ", ".join(f'"{key}": {text}' for key, text in fields.items()) + "}").encode())
    for body in bodies:
        answer = fuzzed.http.request(method, path, content=body, headers={"content-type": "application/json"})
        assert_no_unnamed_failure(answer, _NAMED_5XX, body[:200])
        answer.json()


_NAMES = st.text(max_size=10)
_PARTS = st.dictionaries(_NAMES.filter(lambda name: name != "script"), st.binary(max_size=100), max_size=3)


@given(content=st.binary(max_size=200), content_type=st.sampled_from(["", "text/plain", "application/json"]))
@settings(max_examples=EXAMPLES * 3)
def test_what_is_no_form_runs_nothing(fuzzed: RunningServer, content: bytes, content_type: str) -> None:
    answer = fuzzed.http.post(RUNS_CODE, content=content, headers={"content-type": content_type})
    assert (answer.status_code, answer.text) == (400, "No script file provided")


@given(fields=_PARTS, files=_PARTS)
@settings(max_examples=EXAMPLES * 3)
def test_form_without_a_script_runs_nothing(
    fuzzed: RunningServer, fields: dict[str, bytes], files: dict[str, bytes]
) -> None:
    parts = {name: (name, blob) for name, blob in files.items()}
    answer = fuzzed.http.post(RUNS_CODE, data=fields, files=parts)
    assert answer.status_code == 400
    assert answer.text.startswith("No script file provided")


@given(rest=st.binary(max_size=200))
@settings(max_examples=EXAMPLES * 3)
def test_form_that_is_cut_or_garbled_runs_nothing(fuzzed: RunningServer, rest: bytes) -> None:
    body = b'--x\r\ncontent-disposition: form-data; name="script"; filename="s"\r\n' + rest
    answer = fuzzed.http.post(RUNS_CODE, content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400


def test_server_is_well_after_all_this(fuzzed: RunningServer) -> None:
    assert fuzzed.http.get("/status").json()["is_healthy"] is True
    assert "Traceback" not in fuzzed.errors()
    assert httpx.get(f"{fuzzed.http.base_url}/healthcheck").status_code == 200
