"""KV events of our tier, in vLLM's own types, when the user enabled them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Any

from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVCacheEvent

from lmcache.core.hashing import DIGEST_BYTES

MEDIUM = "LMCACHE"
_EVENTS_MAX = 100_000
_TOLD_MAX = 1_000_000
_REMOVED_PER_EVENT = 4096


class EventLog:
    """Stored and removed chunks. `removed` may be called from the control thread."""

    def __init__(self) -> None:
        self._events: deque[KVCacheEvent] = deque(maxlen=_EVENTS_MAX)
        self._told: OrderedDict[bytes, None] = OrderedDict()

    def stored(
        self, digests: Sequence[bytes], parents: Sequence[bytes | None], tokens: Sequence[Sequence[int]],
        lora_name: str | None,
    ) -> None:  # fmt: skip
        for digest, parent, token_ids in zip(digests, parents, tokens, strict=True):
            self._events.append(
                BlockStored(
                    block_hashes=[digest], parent_block_hash=parent, token_ids=list(token_ids),
                    block_size=len(token_ids), lora_id=None, medium=MEDIUM, lora_name=lora_name,
                )
            )  # fmt: skip
            self._told[digest] = None
        while len(self._told) > _TOLD_MAX:
            self._told.popitem(last=False)

    def removed(self, digest_blob: bytes) -> None:
        """Digests that left the server's L1; those we never told of are nobody's business."""
        digests = [digest_blob[i : i + DIGEST_BYTES] for i in range(0, len(digest_blob), DIGEST_BYTES)]
        gone = [digest for digest in digests if self._told.pop(digest, self) is None]
        if gone:
            self._events.append(BlockRemoved(block_hashes=list(gone), medium=MEDIUM))

    def all_removed(self) -> None:
        """The engine was reset: nothing told of so far can be hit by it again."""
        gone, self._told = list(self._told), OrderedDict()
        for start in range(0, len(gone), _REMOVED_PER_EVENT):
            part: list[Any] = gone[start : start + _REMOVED_PER_EVENT]
            self._events.append(BlockRemoved(block_hashes=part, medium=MEDIUM))

    def take(self) -> Iterable[KVCacheEvent]:
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events
