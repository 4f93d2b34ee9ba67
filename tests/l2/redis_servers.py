"""What the tests of the Redis adapter share: whether there is a server to test with."""

from __future__ import annotations

import os

import pytest

from lmcache.testing.redis_server import find_redis_server

MISSING = "there is no redis-server: install the dev extra on Python 3.11 or 3.12, or the system's redis-server"


def need_redis_server() -> None:
    """Skip the test here, fail it where nobody would notice."""
    if find_redis_server() is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
