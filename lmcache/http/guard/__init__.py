"""Who may call the HTTP API, for any FastAPI application of ours. Knows no command line and no endpoint module."""

from __future__ import annotations

from lmcache.http.guard.middleware import install_guard
from lmcache.http.guard.policy import GuardConfig
from lmcache.http.guard.tokens import Token, read_tokens

__all__ = ["GuardConfig", "Token", "install_guard", "read_tokens"]
