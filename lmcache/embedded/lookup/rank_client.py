"""What lookup clients that ask ranks over sockets have in common, whenever they answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence

import msgspec

from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup import messages as m
from lmcache.embedded.lookup.base import Urls
from lmcache.embedded.lookup.links import RankLinks
from lmcache.errors import DeclinedError

logger = logging.getLogger(__name__)

_decode_layout = msgspec.json.Decoder(KVLayout).decode
# Of the deadline, for a rank's tiers; the rest is for the way.
_WAIT_SHARE = 0.8


class RankLookupClient:
    """`urls` are those of all ranks, `asked` the ranks that answer lookups (None: all of them).

    `timeout_ms` is asked before each lookup, since it may change.
    """

    def __init__(
        self,
        urls: Urls,
        timeout_ms: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        asked: Collection[int] | None = None,
    ) -> None:
        self._timeout_ms = timeout_ms
        self._clock = clock
        self._urls = urls
        self._links = RankLinks(urls, clock)
        self._all = range(len(urls))
        self._asked = tuple(self._all if asked is None else sorted(asked))
        self._complaint = ""

    @property
    def is_up(self) -> bool:
        """Whether no rank that answers lookups is silent."""
        return not self._links.are_silent(self._asked)

    @property
    def _timeout_s(self) -> float:
        return self._timeout_ms() / 1000

    def layouts(self) -> list[KVLayout] | None:
        """Waits for the ranks, unless one is known to be silent."""
        if self._links.are_silent(self._all):
            return None
        answers = self._links.ask(m.Hello(), self._all, self._timeout_s) or []
        layouts = []
        for rank, answer in enumerate(answers):
            if isinstance(answer, m.Declined):
                raise DeclinedError(f"rank {rank}: {answer.text}")
            if isinstance(answer, m.Introduction):
                layouts.append(_decode_layout(answer.layout))
        return layouts if len(layouts) == len(self._all) else None

    def _question(self, lookup_id: str, prompt: Prompt, timeout_s: float, may_wait: bool) -> m.Lookup:
        wait_s = timeout_s * _WAIT_SHARE if may_wait else 0.0
        digests = b"".join(prompt.digests)
        return m.Lookup(lookup_id, prompt.root, prompt.cache_salt, digests, wait_s, prompt.tail_blocks)

    def _least(self, answers: Sequence[m.Answer]) -> int:
        """Chunks that all of them found. A failure is none, and is told once until the ranks fail otherwise."""
        failures = [answer.text for answer in answers if isinstance(answer, m.Failed)]
        complaint = "; ".join(dict.fromkeys(failures))
        if complaint and complaint != self._complaint:
            logger.warning("lookups fail: %s", complaint)
        self._complaint = complaint
        return min(answer.num_chunks if isinstance(answer, m.Found) else 0 for answer in answers)

    def name(self) -> str:
        return type(self).__name__

    def close(self) -> None:
        self._links.close()
