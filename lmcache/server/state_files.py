"""Where the server keeps what must survive it and is no part of the pool: the user's state folder."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

_QUOTAS = "quotas.json"


def quota_file(given: str | None, pool_name: str, environ: Mapping[str, str] = os.environ) -> pathlib.Path | None:
    """The file of quotas: the one given, else one named after the pool. None: this user has no home."""
    if given is not None:
        return pathlib.Path(given).expanduser().absolute()
    folder = state_folder(environ)
    return folder / pool_name / _QUOTAS if folder is not None else None


def state_folder(environ: Mapping[str, str]) -> pathlib.Path | None:
    """Ours below $XDG_STATE_HOME, which counts only where it is absolute, or below ~/.local/state."""
    base = pathlib.Path(environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():
        home = pathlib.Path(environ.get("HOME", ""))
        if not home.is_absolute():
            return None
        base = home / ".local" / "state"
    return base / "lmcache"
