"""The version of this package, and the logger factory under the name vLLM imports.

A built package carries `_version.py`; a bare checkout does not, and says so.
"""

from __future__ import annotations

import importlib
from typing import NoReturn

from lmcache.logging import init_logger

__all__ = ["COMMIT_ID", "VERSION", "get_version", "init_logger"]

_UNKNOWN = "NA"


def _built(name: str) -> str:
    try:
        module = importlib.import_module("lmcache._version")
    except ModuleNotFoundError:
        return ""
    return str(getattr(module, name))


VERSION = _built("VERSION")
COMMIT_ID = _built("COMMIT_ID")


def get_version() -> str:
    """`<version>-<commit>`, each `NA` where the build did not say."""
    return f"{VERSION or _UNKNOWN}-{COMMIT_ID or _UNKNOWN}"


def __getattr__(name: str) -> NoReturn:
    """vLLM's own copies of lmcache's adapters ask for this first: answered here, before they miss anything else."""
    if name == "_lmcache_nvtx_annotate":
        raise ImportError(
            "vLLM's own adapters do not work with this package: leave `use_native` out of kv_connector_extra_config "
            "(LMCacheConnectorV1), and LMCACHE_USE_UPSTREAM_MP out of the environment (LMCacheMPConnector)"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
