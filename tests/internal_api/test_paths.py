"""Paths and queries of the internal API that are no text."""

from __future__ import annotations

import pytest

from tests.internal_api.asking import worker


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("DELETE", "/backends/%ff"), ("POST", "/backends/%C3/recreate"), ("GET", "/periodic-threads/%ff"),
        ("PUT", "/bypass/add?name=%ff"),
    ],
)  # fmt: skip
def test_what_is_not_utf8_is_refused(method: str, target: str) -> None:
    asked = worker()
    assert asked.json(method, target, 400) == {"error": "path and query must be UTF-8, percent-encoded"}


def test_a_slash_in_the_name_of_a_thread() -> None:
    assert worker().json("GET", "/periodic-threads/a%2Fb", 404) == {"error": "Thread not found: a/b"}
