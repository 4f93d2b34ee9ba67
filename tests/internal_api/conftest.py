"""Fixtures of internal APIs that listen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.internal_api.serving import Serving


@pytest.fixture
def serving() -> Iterator[Serving]:
    found = Serving()
    yield found
    found.close()
