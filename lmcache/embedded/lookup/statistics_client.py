"""A lookup client around another, which has the chunks of all lookups counted. Knows no way of counting."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup.base import LookupClient
from lmcache.embedded.statistics.recorder import ChunkStatisticsRecorder


class ChunkStatisticsLookupClient:
    """A `LookupClient`, the outermost. What is for operators may be called by any thread.

    Closes the client inside and the recorder with itself.
    """

    def __init__(
        self,
        inner: LookupClient,
        recorder: ChunkStatisticsRecorder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._recorder = recorder
        self._clock = clock

    def layouts(self) -> list[KVLayout] | None:
        return self._inner.layouts()

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int | None:
        """A prompt without a whole chunk is counted, too; nobody is asked for it."""
        if not self._recorder.is_collecting:
            return self._ask(lookup_id, prompt, may_wait)
        began_s = self._clock()
        found = self._ask(lookup_id, prompt, may_wait)
        self._recorder.record(lookup_id, prompt, self._clock() - began_s)
        return found

    def _ask(self, lookup_id: str, prompt: Prompt, may_wait: bool) -> int | None:
        if not prompt.digests:
            return 0
        if prompt.tail is not None:
            prompt = replace(prompt, tail=None)
        return self._inner.lookup(lookup_id, prompt, may_wait)

    def forget(self, lookup_id: str) -> None:
        self._inner.forget(lookup_id)

    def end_lookups(self) -> None:
        self._inner.end_lookups()

    def name(self) -> str:
        return f"{type(self).__name__}({self._inner.name()})"

    def close(self) -> None:
        self._inner.close()
        self._recorder.close()

    # For operators

    def start(self) -> None:
        """Count from now on; what was counted before stays."""
        self._recorder.start()

    def stop(self) -> None:
        """Lookups are not counted any more."""
        self._recorder.stop()

    def reset(self) -> None:
        """Begin at nothing. Raises LMCacheError where what was recorded before takes too long to be counted."""
        self._recorder.reset()

    def status(self) -> dict[str, object]:
        """For JSON, by the documented keys. Waits for nobody."""
        return self._recorder.status()
