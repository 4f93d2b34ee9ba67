"""Which adapter loads which object of a prefetch, and when enough adapters have answered. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lmcache.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PrefetchPolicy:
    """`retains`: what was loaded stays in L1 when its reader is done. `takes_first`: an adapter that has
    everything asked for need not wait for the others."""

    name: str
    retains: bool = False
    takes_first: bool = False

    def is_decided(self, answers: Mapping[int, Sequence[bool]], num_asked: int) -> bool:
        """`answers`: found or not per key, by adapter index, in the order they came."""
        if len(answers) == num_asked:
            return True
        return self.takes_first and any(all(found) for found in answers.values())

    def plan(
        self,
        answers: Mapping[int, Sequence[bool]],
        num_keys: int,
        position: Callable[[int], tuple[int, int]] = lambda index: (0, index),
    ) -> list[int | None]:
        """The adapter that loads each key. `position`: where an adapter stands in the order of search."""
        if self.takes_first:
            return _longest_first(answers, num_keys)
        order = sorted(answers, key=position)
        return [next((index for index in order if answers[index][key]), None) for key in range(num_keys)]


def _longest_first(answers: Mapping[int, Sequence[bool]], num_keys: int) -> list[int | None]:
    """All from the adapter with the longest prefix, the first to answer among equals; what it lacks from the others."""
    arrived = list(answers)
    order = sorted(arrived, key=lambda index: (-_prefix_length(answers[index]), arrived.index(index)))
    return [next((index for index in order if answers[index][key]), None) for key in range(num_keys)]


def _prefix_length(found: Sequence[bool]) -> int:
    return next((position for position, is_held in enumerate(found) if not is_held), len(found))


_POLICIES = {
    policy.name: policy
    for policy in (
        PrefetchPolicy("default"),
        PrefetchPolicy("retain", retains=True),
        PrefetchPolicy("first", takes_first=True),
    )
}


def prefetch_policy_names() -> list[str]:
    return sorted(_POLICIES)


def make_prefetch_policy(name: str) -> PrefetchPolicy:
    if name not in _POLICIES:
        raise ConfigError(f"--l2-prefetch-policy must be one of {', '.join(prefetch_policy_names())} (got {name!r})")
    return _POLICIES[name]
