"""The version of this package, and the logger factory under the name vLLM imports.

A built package carries `_version.py`; a bare checkout does not, and says so.
"""

from __future__ import annotations

import importlib

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
