"""Which adapters a new object goes to, and whether L1 keeps it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmcache.errors import ConfigError


@dataclass(frozen=True, slots=True)
class StorePolicy:
    """Every object goes to every adapter in use. `keeps_l1` False: L1 lets go once all of them have it."""

    name: str
    keeps_l1: bool

    def choose(self, adapter_indexes: Sequence[int]) -> list[int]:
        return list(adapter_indexes)


_POLICIES = {policy.name: policy for policy in (StorePolicy("default", True), StorePolicy("skip_l1", False))}


def store_policy_names() -> list[str]:
    return sorted(_POLICIES)


def make_store_policy(name: str) -> StorePolicy:
    if name not in _POLICIES:
        raise ConfigError(f"--l2-store-policy must be one of {', '.join(store_policy_names())} (got {name!r})")
    return _POLICIES[name]
