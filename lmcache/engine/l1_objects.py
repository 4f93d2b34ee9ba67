"""L1 by key, for operators: in slices with a pause between them, so that requests go on meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from lmcache.core.keys import ObjectKey
from lmcache.engine.pool import Pool
from lmcache.l1.manager import L1Manager
from lmcache.l2.base import Deleted, KeyPage
from lmcache.l2.indexed import decode_row_token, encode_row_token

_KEYS_PER_SLICE = 512
_PAUSE_S = 0.0005


class L1Objects:
    """Takes the engine's `mutex` itself. `find_pool`: the pool of the moment; `note_removed`: tells of removals."""

    def __init__(
        self, mutex: threading.RLock, find_pool: Callable[[], Pool], note_removed: Callable[[L1Manager], None]
    ) -> None:
        self._mutex = mutex
        self._find_pool = find_pool
        self._note_removed = note_removed

    def delete(self, keys: Sequence[ObjectKey], force: bool) -> Deleted:
        """`leased` are the keys that somebody has locked or is writing; none with `force`."""
        outcome = Deleted()
        for start in range(0, len(keys), _KEYS_PER_SLICE):
            with self._mutex:
                pool = self._find_pool()
                if pool.is_closed:
                    break
                deleted, left = pool.l1.delete_keys(keys[start : start + _KEYS_PER_SLICE], force)
                self._note_removed(pool.l1)
            outcome.deleted.extend(deleted)
            outcome.leased.extend(left)
            time.sleep(_PAUSE_S)
        num_absent = len(keys) - len({*outcome.deleted, *outcome.leased})
        return Deleted(outcome.deleted, outcome.leased, num_absent)

    def page(self, model_name: str | None, page_size: int, page_token: str | None) -> KeyPage:
        """Raises PageTokenError."""
        slot = decode_row_token(page_token) if page_token else 0
        entries: list[tuple[ObjectKey, int]] = []
        num_slots = self._find_pool().config.geometry.num_records
        while slot < num_slots and len(entries) < page_size:
            with self._mutex:
                pool = self._find_pool()
                if pool.is_closed:
                    return KeyPage(entries, None)
                found, slot = pool.l1.page(slot, page_size - len(entries), model_name)
            entries += found
            time.sleep(_PAUSE_S)
        return KeyPage(entries, encode_row_token(slot) if slot < num_slots else None)
