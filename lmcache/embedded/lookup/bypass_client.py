"""The lookup client that asks the L2 tiers itself, by an engine of the scheduler's own, and no worker.

Workers are only asked how their pages lie, once. Tiers that used up the time of a lookup are left alone for a
while: until then lookups miss at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup.base import LookupClient, TierLookups
from lmcache.errors import LMCacheError

logger = logging.getLogger(__name__)

# Of the deadline, for the tiers.
_WAIT_SHARE = 0.8
_PAUSE_S = (1.0, 30.0)


class LMCacheBypassLookupClient:
    """A `LookupClient`. `engine` and `layouts_client` are closed with it; the latter as soon as it has answered.

    `engine` None: one that only tells its name, for a dry run.
    """

    def __init__(
        self,
        engine: TierLookups | None,
        layouts_client: LookupClient,
        timeout_ms: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self._layouts_client: LookupClient | None = layouts_client
        self._timeout_ms = timeout_ms
        self._clock = clock
        self._layouts: list[KVLayout] | None = None
        self._pause_s = 0.0
        self._resumes_s = 0.0

    def layouts(self) -> list[KVLayout] | None:
        """Ranks keep their layout for as long as they live."""
        if self._layouts is None and self._layouts_client is not None:
            self._layouts = self._layouts_client.layouts()
            if self._layouts is not None:
                self._close_layouts_client()
        return self._layouts

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int:
        began_s = self._clock()
        if self.engine is None or not may_wait or began_s < self._resumes_s:
            return 0
        wait_s = self._timeout_ms() / 1000 * _WAIT_SHARE
        try:
            found = self.engine.count_leading(prompt, wait_s)
        except LMCacheError as error:
            logger.warning("a lookup of the tiers failed: %s", error)
            found = 0
        ended_s = self._clock()
        if ended_s < began_s + wait_s:
            self._pause_s = 0.0
        else:
            self._pause(ended_s)
        return found

    def _pause(self, now_s: float) -> None:
        """Leave the tiers alone, for twice as long each time that they are too slow again."""
        shortest_s, longest_s = _PAUSE_S
        self._pause_s = min(longest_s, max(shortest_s, 2 * self._pause_s))
        self._resumes_s = now_s + self._pause_s
        logger.warning("the tiers did not answer a lookup in time: lookups miss for %g s", self._pause_s)

    def forget(self, lookup_id: str) -> None:
        """Every lookup is over when it returns."""

    def end_lookups(self) -> None:
        """The same."""

    def name(self) -> str:
        return type(self).__name__

    def _close_layouts_client(self) -> None:
        client, self._layouts_client = self._layouts_client, None
        if client is not None:
            client.close()

    def close(self) -> None:
        self._close_layouts_client()
        if self.engine is not None:
            self.engine.close()
