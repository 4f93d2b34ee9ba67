"""Every endpoint called with what its description allows and with what it does not: no answer but those described,
and no 5xx but those the documents name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import Phase, settings
from schemathesis.checks import CheckContext
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from lmcache.embedded.manager import SCHEDULER, WORKER
from lmcache.testing.embedded_fake import CountingClient
from tests.http.test_guard_bodies import ODD_BODIES
from tests.internal_api.asking import worker
from tests.internal_api.serving import Running, Serving

_RUNS_CODE = "/run_script"
# What nobody has here is told with this.
_NAMED_5XX = {503}
_EXAMPLES = int(os.environ.get("LMCACHE_TEST_HTTP_EXAMPLES", "15"))

schema = schemathesis.openapi.from_dict(worker().app.openapi())


@pytest.fixture(scope="module", params=[SCHEDULER, WORKER])
def fuzzed(request: pytest.FixtureRequest) -> Iterator[Running]:
    serving = Serving()
    running = serving.start(request.param)
    if request.param == SCHEDULER:
        running.manager.lookups.current = CountingClient()
    yield running
    serving.close()


def no_unnamed_server_error(ctx: CheckContext, response: Any, case: Any) -> None:
    assert response.status_code < 500 or response.status_code in _NAMED_5XX, response.text


_CHECKS = [
    no_unnamed_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
]  # fmt: skip


@schema.exclude(path=_RUNS_CODE).parametrize()
@settings(max_examples=_EXAMPLES, phases=[Phase.explicit, Phase.generate], deadline=None)
def test_endpoint_answers_as_described(case: Any, fuzzed: Running) -> None:
    case.call_and_validate(base_url=str(fuzzed.http.base_url), checks=_CHECKS)


@pytest.mark.parametrize("path", ["/conf", "/cache/load-fs-chunks"])
def test_odd_body_is_refused(fuzzed: Running, path: str) -> None:
    for body in ODD_BODIES.values():
        answer = fuzzed.http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code < 500 or answer.status_code in _NAMED_5XX, (body[:200], answer.text)
        answer.json()


_VALUES = ("NaN", "-Infinity", "1e999", "9" * 4000, "-1", '"\\ud800"', '"\\u0000"', "[" * 500 + "]" * 500, "{}", "null")


def test_odd_value_of_any_key_is_kept_or_refused(fuzzed: Running) -> None:
    """One that would switch the API off is left out."""
    keys = set(fuzzed.manager.config.as_dict()) - {"internal_api_server_enabled"}
    for key in sorted(keys):
        for value in _VALUES:
            answer = fuzzed.http.post("/conf", content=f'{{"{key}": {value}}}')
            assert answer.status_code in (200, 400), (key, value[:50], answer.text)
            assert {"updated"} <= answer.json().keys()
    assert fuzzed.http.get("/conf").status_code == 200
