"""The version endpoints, shared with the API inside an engine's process."""

from __future__ import annotations

from lmcache.v1.internal_api_server.vllm.version_api import router

__all__ = ["router"]
