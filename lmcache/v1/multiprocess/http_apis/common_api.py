"""The endpoints that every process of ours serves, forwarded to the server's discovery."""

from __future__ import annotations

from lmcache.http.registry import HTTPAPIRegistry
from lmcache.v1.internal_api_server import common

# Modules of that package whose endpoints make no sense in this process.
_MP_INCOMPATIBLE_MODULES: frozenset[str] = frozenset()

router = HTTPAPIRegistry(common.__name__, _MP_INCOMPATIBLE_MODULES).aggregate()
