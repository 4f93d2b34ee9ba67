"""What a way to count chunks is, and what it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lmcache.embedded.jobs import Prompt


@dataclass(frozen=True, slots=True)
class Record:
    """A lookup that is to be counted. `at_s`: by the wall clock."""

    lookup_id: str
    at_s: float
    prompt: Prompt


class CountingStrategy(Protocol):
    """Used by one thread, but for `figures`.

    `is_lasting`: what it did outlives the process, so what waits to be counted is worth a moment at the end.
    """

    name: str
    is_lasting: bool

    def count(self, lookup_id: str, at_s: float, cache_salt: str, digests: tuple[bytes, ...]) -> int:
        """How many of these chunks are new. Failures of the outside world are its own concern."""

    def clear(self) -> None:
        """Forget what was seen."""

    def figures(self) -> dict[str, object]:
        """For operators. Any thread."""

    def close(self) -> None: ...
