"""Every endpoint called with what its description allows and with what it does not: no answer but those described,
and no 5xx but those the documents name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis

from lmcache.embedded.manager import SCHEDULER, WORKER
from lmcache.testing.embedded_fake import CountingClient
from tests.http.described import ODD_VALUES, RUNS_CODE, as_described, assert_no_unnamed_failure, validate
from tests.http.test_guard_bodies import ODD_BODIES
from tests.internal_api.asking import worker
from tests.internal_api.serving import Running, Serving

# What nobody has here is told with this.
_NAMED_5XX = {503}

schema = schemathesis.openapi.from_dict(worker().app.openapi())


@pytest.fixture(scope="module", params=[SCHEDULER, WORKER])
def fuzzed(request: pytest.FixtureRequest) -> Iterator[Running]:
    serving = Serving()
    running = serving.start(request.param)
    if request.param == SCHEDULER:
        running.manager.lookups.current = CountingClient()
    yield running
    serving.close()


@schema.exclude(path=RUNS_CODE).parametrize()
@as_described
def test_endpoint_answers_as_described(case: Any, fuzzed: Running) -> None:
    validate(case, str(fuzzed.http.base_url), _NAMED_5XX)


@pytest.mark.parametrize("path", ["/conf", "/cache/load-fs-chunks"])
def test_odd_body_is_refused(fuzzed: Running, path: str) -> None:
    for body in ODD_BODIES.values():
        answer = fuzzed.http.post(path, content=body, headers={"content-type": "application/json"})
        assert_no_unnamed_failure(answer, _NAMED_5XX, body[:200])
        answer.json()


def test_odd_value_of_any_key_is_kept_or_refused(fuzzed: Running) -> None:
    """One that would switch the API off is left out."""
    keys = set(fuzzed.manager.config.as_dict()) - {"internal_api_server_enabled"}
    for key in sorted(keys):
        for value in ODD_VALUES:
            answer = fuzzed.http.post("/conf", content=f'{{"{key}": {value}}}')
            assert answer.status_code in (200, 400), (key, value[:50], answer.text)
            assert {"updated"} <= answer.json().keys()
    assert fuzzed.http.get("/conf").status_code == 200
