"""Lookups of one rank: what L1 has of a prompt, what the tiers bring up, and what is held until it is loaded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from lmcache.embedded.backends import BackendSet
from lmcache.embedded.fetching import Fetch, Fetcher, Wanted
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup_locks import LookupLocks
from lmcache.errors import LMCacheError
from lmcache.l1.namespace import NamespaceKey, RankGroup

logger = logging.getLogger(__name__)

# A controller that does not answer by its own deadline is not waited for much longer.
_ANSWER_SLACK_S = 0.5


class PromptLookups:
    """Any thread. The mutex guards who is being fetched for; neither L1's nor the controller's is taken under it."""

    def __init__(
        self,
        locks: LookupLocks,
        fetcher: Fetcher,
        backends: BackendSet,
        rank_group: RankGroup,
        make_key: Callable[[str], NamespaceKey],
    ) -> None:
        self._locks = locks
        self._fetcher = fetcher
        self._backends = backends
        self._rank_group = rank_group
        self._make_key = make_key
        self._mutex = threading.Lock()
        self._under_way: dict[str, Fetch[int]] = {}

    def lookup(self, lookup_id: str, prompt: Prompt, wait_s: float) -> int:
        """Leading chunks that are in L1, held for this lookup until they are loaded or released.

        What the tiers have beyond that is fetched for `wait_s` at most; what arrives later stays for others.
        Raises KeyFormatError.
        """
        done = threading.Event()
        found: list[int] = []

        def on_found(num_chunks: int) -> None:
            found.append(num_chunks)
            done.set()

        fetch = self._begin(lookup_id, prompt, wait_s, on_found)
        if fetch is not None and not done.wait(wait_s + _ANSWER_SLACK_S):
            self._fetcher.give_up(fetch)
            done.wait()
        return found[0]

    def lookup_later(self, lookup_id: str, prompt: Prompt, wait_s: float, on_found: Callable[[int], None]) -> None:
        """The same without waiting: `on_found` is told once, from any thread, perhaps before this returns."""
        try:
            self._begin(lookup_id, prompt, wait_s, on_found)
        except LMCacheError as error:
            logger.warning("a lookup failed: %s", error)
            on_found(0)

    def _begin(
        self, lookup_id: str, prompt: Prompt, wait_s: float, on_found: Callable[[int], None]
    ) -> Fetch[int] | None:
        """None: `on_found` was told already."""
        key, digests = self._make_key(prompt.cache_salt), list(prompt.digests)
        routing = self._backends.routing
        self._end_fetch(lookup_id)
        num_found = self._locks.lock(lookup_id, key, self._rank_group, digests if routing.reads_l1 else [])
        if num_found == len(digests) or wait_s <= 0 or not self._fetcher.is_promising(key, digests[num_found]):
            on_found(num_found)
            return None
        wanted = Wanted(key, digests, num_found, prompt.tail_blocks)

        def on_answer(answer: int | None) -> None:
            with self._mutex:
                if self._under_way.get(lookup_id) is fetch:
                    del self._under_way[lookup_id]
            on_found(num_found if answer is None else answer)

        fetch = self._fetcher.prepare(
            lambda num_chunks: self._locks.lock(lookup_id, key, self._rank_group, digests[:num_chunks]), on_answer
        )
        with self._mutex:
            self._under_way[lookup_id] = fetch
        self._fetcher.begin(fetch, wanted, wait_s, routing)
        return fetch

    def release(self, lookup_ids: Iterable[str]) -> int:
        """These lookups are over, those under way as well; how many of them held something."""
        ids = list(lookup_ids)
        for lookup_id in ids:
            self._end_fetch(lookup_id)
        return self._locks.release(ids)

    def _end_fetch(self, lookup_id: str) -> None:
        with self._mutex:
            fetch = self._under_way.pop(lookup_id, None)
        if fetch is not None:
            self._fetcher.give_up(fetch)
