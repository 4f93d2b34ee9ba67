"""What a call demands of its caller, decided by method and path alone, so that it holds for any
endpoint, also for one of a module nobody here has heard of."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from urllib.parse import parse_qs


class Role(enum.IntEnum):
    """Each may do what those below it may."""

    READ = 1
    OPERATE = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Demand:
    """`role` None: open to everybody. `is_change`: it may change something, so it is audited."""

    role: Role | None
    is_change: bool


# Probes carry no token, and tell nothing but that somebody is there.
_OPEN_PATHS = frozenset({"/", "/healthcheck"})
_READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Secrets of the environment and code of the caller's choice; stacks of the running code.
_ROLE_OF_PATH = {"/env": Role.ADMIN, "/run_script": Role.ADMIN, "/threads": Role.OPERATE}
# A GET that changes something when this is among its parameters.
_CHANGING_PARAMETER = {"/loglevel": "level"}


def demand_of(method: str, path: str, query: str) -> Demand:
    parameter = _CHANGING_PARAMETER.get(path)
    is_change = method not in _READING_METHODS or (parameter is not None and parameter in parse_qs(query, True))
    if path in _OPEN_PATHS and not is_change:
        return Demand(None, False)
    role = Role.OPERATE if is_change else Role.READ
    return Demand(max(role, _ROLE_OF_PATH.get(path, role)), is_change)
