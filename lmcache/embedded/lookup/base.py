"""What a lookup client and a lookup server are, whatever travels between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.operations import CacheOperations


class LookupClient(Protocol):
    """The scheduler's side. One thread at a time."""

    def layouts(self) -> list[KVLayout] | None:
        """How the pages of every rank lie, in rank order; None while some rank does not answer.

        Raises DeclinedError if a rank says that it caches nothing.
        """

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int | None:
        """Leading chunks that every rank holds for this lookup. 0 also for any failure; None: ask again soon.

        Without `may_wait`, tiers below L1 are not asked.
        """

    def forget(self, lookup_id: str) -> None:
        """Nobody will ask for this lookup again. What ranks hold for it is released by its own way."""

    def name(self) -> str:
        """The class, around that of the client inside where there is one: `Outer(Inner(Core))`."""

    def end_lookups(self) -> None:
        """Only `close` follows. Ranks hold nothing any more for lookups that are under way: it waits a moment at most
        for them to say so."""

    def close(self) -> None: ...


class LookupServer(Protocol):
    """A rank's side."""

    def start(self) -> None:
        """Raises ConfigError where nobody can listen there."""

    def name(self) -> str:
        """The class."""

    def close(self) -> None: ...


class LookupSwitch(Protocol):
    """Changes this process's client (of a scheduler) or server (of a worker) while it is in use. Any thread.

    Names are those of `LookupClient.name` and `LookupServer.name`, or "None".
    """

    def info(self) -> tuple[str, str]:
        """Client and server."""

    def close(self) -> str:
        """Until another is made, lookups miss. The old one's name. Raises LookupSwitchError."""

    def create(self, is_dry_run: bool) -> str:
        """By the configuration of now; the new one's name. A dry run makes and closes one that nobody meets.
        Raises LookupSwitchError, ConfigError."""

    def recreate(self) -> tuple[str, str]:
        """Close and create in one step. Raises LookupSwitchError where there is nothing to replace, ConfigError."""


class LookupTarget(Protocol):
    """What a server answers from. Called in the server's thread."""

    def introduce(self) -> KVLayout:
        """Raises DeclinedError."""

    def lookup(self, lookup_id: str, prompt: Prompt, wait_s: float) -> int: ...

    def lookup_later(self, lookup_id: str, prompt: Prompt, wait_s: float, on_found: Callable[[int], None]) -> None:
        """The same without waiting: `on_found` is told once, from any thread, perhaps before this returns."""

    def release(self, lookup_ids: Iterable[str]) -> int:
        """These lookups are over, those still under way too; how many of them held something."""


class TierLookups(CacheOperations, Protocol):
    """A scheduler's own engine, over the L2 tiers alone."""

    def count_leading(self, prompt: Prompt, wait_s: float) -> int:
        """Leading chunks that the tiers hold for every rank, as far as they answer within this time."""

    def close(self) -> None: ...


# Where each rank listens, in rank order.
Urls = Sequence[str]
