"""Settings of scripts that are run inside a process of ours on an operator's request."""

from __future__ import annotations

from dataclasses import dataclass

TIMEOUT_S = 30.0
TIMEOUT_S_MAX = 86400


@dataclass(frozen=True, slots=True)
class ScriptSettings:
    """`allowed_imports`: dotted names of the modules a script may import, each named exactly."""

    allowed_imports: tuple[str, ...] = ()
    timeout_s: float = TIMEOUT_S
