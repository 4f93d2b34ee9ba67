"""What a lookup client and a lookup server are, whatever travels between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt


class LookupClient(Protocol):
    """The scheduler's side. One thread at a time."""

    def layouts(self) -> list[KVLayout] | None:
        """How the pages of every rank lie, in rank order; None while some rank does not answer.

        Raises DeclinedError if a rank says that it caches nothing.
        """

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int:
        """Leading chunks that every rank holds for this lookup. 0 also for any failure.

        Without `may_wait`, tiers below L1 are not asked.
        """

    def close(self) -> None: ...


class LookupServer(Protocol):
    """A rank's side."""

    def start(self) -> None:
        """Raises ConfigError where nobody can listen there."""

    def close(self) -> None: ...


class LookupTarget(Protocol):
    """What a server answers from. Called in the server's thread."""

    def introduce(self) -> KVLayout:
        """Raises DeclinedError."""

    def lookup(self, lookup_id: str, prompt: Prompt, wait_s: float) -> int: ...


# Where each rank listens, in rank order.
Urls = Sequence[str]
