"""How the answers of an HTTP API of ours are held to its description; for the tests of each of them."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import schemathesis
from hypothesis import Phase, settings
from schemathesis.checks import CheckContext
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from lmcache.testing.waiting import PATIENCE_S

# Its body is code; what is no script is tried apart.
RUNS_CODE = "/run_script"
EXAMPLES = int(os.environ.get("LMCACHE_TEST_HTTP_EXAMPLES", "20"))
# Of one operation.
as_described = settings(max_examples=EXAMPLES, phases=[Phase.explicit, Phase.generate], deadline=None)
# What JSON as Python reads it may hold and no field of ours wants.
ODD_VALUES = (
    "NaN", "-Infinity", "1e999", "9" * 4000, "-1", "1e308", '"\\ud800"', '"\\u0000"', "[" * 500 + "]" * 500, "{}",
    "true", "null",
)  # fmt: skip


def assert_no_unnamed_failure(answer: Any, named: Collection[int], sent: object = "") -> None:
    """`named`: the codes from 500 on that the documents name."""
    assert answer.status_code < 500 or answer.status_code in named, (sent, answer.text)


def validate(case: schemathesis.Case, base_url: str, named: Collection[int]) -> None:
    """Call what the case describes: the answer is one of those described, and no failure that the documents do not
    name."""

    def no_unnamed_failure(ctx: CheckContext, response: Any, case: Any) -> None:
        assert_no_unnamed_failure(response, named)

    checks = [
        no_unnamed_failure, status_code_conformance, content_type_conformance, response_schema_conformance,
    ]  # fmt: skip
    case.call_and_validate(base_url=base_url, checks=checks, timeout=PATIENCE_S)
