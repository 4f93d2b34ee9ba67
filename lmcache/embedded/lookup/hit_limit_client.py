"""A lookup client around another, which answers fewer hits than there are, for experiments."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal

from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup.base import LookupClient


class HitLimitLookupClient:
    """A `LookupClient`. `ratio`: the share of every prompt that is a miss at least; None: no limit. Asked each time."""

    def __init__(self, inner: LookupClient, ratio: Callable[[], float | None], chunk_size: int) -> None:
        self.inner = inner
        self._ratio = ratio
        self._chunk_size = chunk_size

    def layouts(self) -> list[KVLayout] | None:
        return self.inner.layouts()

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int | None:
        found, ratio = self.inner.lookup(lookup_id, prompt, may_wait), self._ratio()
        return found if found is None or ratio is None else self._limited(found, prompt, ratio)

    def _limited(self, num_found: int, prompt: Prompt, ratio: float) -> int:
        """Chunks of so many tokens of the prompt as may be hits, rounded down to whole ones.

        The ratio is taken as it was written, 0.9 as nine tenths: what binary fractions add could cost a chunk.
        """
        if not ratio:
            return num_found
        num_tokens = prompt.num_tokens or len(prompt.digests) * self._chunk_size
        num_hit_tokens_max = math.floor(num_tokens * (1 - Decimal(str(ratio))))
        return min(num_found, num_hit_tokens_max // self._chunk_size)

    def forget(self, lookup_id: str) -> None:
        self.inner.forget(lookup_id)

    def end_lookups(self) -> None:
        self.inner.end_lookups()

    def name(self) -> str:
        return f"{type(self).__name__}({self.inner.name()})"

    def close(self) -> None:
        self.inner.close()
