"""The asynchronous lookup client: asks all ranks and answers later, when it is asked the same again.

A lookup never waits. Answers that come after its deadline, or that nobody asks for any more, are dropped, and
the ranks are told to let go of what they found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup import messages as m
from lmcache.embedded.lookup.base import Urls
from lmcache.embedded.lookup.links import Inquiry, Progress
from lmcache.embedded.lookup.rank_client import RankLookupClient

# Lookups whose answer nobody came for. Beyond that the oldest is given up.
_PENDING_MAX = 10_000
# How long the end waits for the ranks to let go, so that it does not cross what the next client asks.
_LAST_WORD_S = 0.2


@dataclass(frozen=True, slots=True)
class _Pending:
    prompt: Prompt
    inquiry: Inquiry


class LMCacheAsyncLookupClient(RankLookupClient):
    """A `LookupClient`. A lookup is known by its id; another prompt under the same id begins it anew."""

    def __init__(
        self,
        urls: Urls,
        timeout_ms: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        asked: Collection[int] | None = None,
    ) -> None:
        super().__init__(urls, timeout_ms, clock, asked)
        self._pending: dict[str, _Pending] = {}

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int | None:
        pending = self._pending.get(lookup_id)
        if pending is None or pending.prompt != prompt:
            return self._begin(lookup_id, prompt, may_wait)
        progress = self._links.progress(pending.inquiry)
        if progress is Progress.WAITING:
            return None
        self._drop(lookup_id)
        if progress is Progress.ANSWERED:
            answers = pending.inquiry.answers
            return self._least([answers[rank] for rank in self._asked])
        self._links.tell(m.Release((lookup_id,)), self._asked)
        return 0

    def _begin(self, lookup_id: str, prompt: Prompt, may_wait: bool) -> int | None:
        """What the ranks found for another prompt under this id is replaced by what they find now."""
        was_pending = self._drop(lookup_id)
        if self._links.are_silent(self._asked):
            if was_pending:
                self._links.tell(m.Release((lookup_id,)), self._asked)
            return 0
        if len(self._pending) >= _PENDING_MAX:
            self.forget(next(iter(self._pending)))
        timeout_s = self._timeout_s
        question = self._question(lookup_id, prompt, timeout_s, may_wait)
        self._pending[lookup_id] = _Pending(prompt, self._links.begin(question, self._asked, timeout_s))
        return None

    def _drop(self, lookup_id: str) -> bool:
        """Whether it was pending."""
        pending = self._pending.pop(lookup_id, None)
        if pending is not None:
            self._links.end(pending.inquiry)
        return pending is not None

    def forget(self, lookup_id: str) -> None:
        if self._drop(lookup_id):
            self._links.tell(m.Release((lookup_id,)), self._asked)

    def end_lookups(self) -> None:
        lookup_ids = tuple(self._pending)
        for lookup_id in lookup_ids:
            self._drop(lookup_id)
        if lookup_ids:
            self._links.ask(m.Release(lookup_ids), self._asked, _LAST_WORD_S)

    def close(self) -> None:
        self.end_lookups()
        super().close()
