"""A text that is costly to make and asked for often: made off the event loop, one at a time, and kept for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio
import anyio.to_thread

INTERVAL_S = 1.0


class CachedRendering:
    """Belongs to one event loop, on which all its methods are called. `render` runs in a thread."""

    def __init__(self, render: Callable[[], bytes], clock: Callable[[], float], interval_s: float = INTERVAL_S) -> None:
        self._render = render
        self._clock = clock
        self._interval_s = interval_s
        self._text: bytes | None = None
        self._rendered_s = 0.0
        # Grows when what was rendered so far is no longer true.
        self._version = 0
        self._mutex = asyncio.Lock()
        # Not one of the places that the handlers share: whatever takes those must not hide the metrics.
        self._thread = anyio.CapacityLimiter(1)

    async def text(self) -> bytes:
        """The last rendering if it is young enough, else a new one. Those who wait for one share it."""
        if (text := self._fresh()) is not None:
            return text
        async with self._mutex:
            while (text := self._fresh()) is None:
                version = self._version
                rendered = await anyio.to_thread.run_sync(self._render, limiter=self._thread)
                if version == self._version:
                    # Aged from its end: a slow rendering must not be repeated for each who waited.
                    self._text, self._rendered_s = rendered, self._clock()
                    return rendered
            return text

    def invalidate(self) -> None:
        """Whoever asks from now on gets what is rendered from now on."""
        self._version += 1
        self._text = None

    def _fresh(self) -> bytes | None:
        is_young = self._text is not None and self._clock() - self._rendered_s < self._interval_s
        return self._text if is_young else None
