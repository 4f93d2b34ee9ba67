"""The scheduler's own engine: it asks the tiers of all ranks what they hold, and stores and loads nothing.

No pool, no L1. Backends are left as they are, since the workers' processes write to them. Knows no socket.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from lmcache.core.keys import ObjectKey, check_cache_salt
from lmcache.embedded.backend_operations import BackendOperations
from lmcache.embedded.backends import BackendSet, routing_of
from lmcache.embedded.config import Backend, EmbeddedConfig
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.operations import LoadedChunks
from lmcache.embedded.tiers import OPEN_PATIENCE_S, open_storage
from lmcache.engine.pool import SERVER_UID
from lmcache.errors import LMCacheError
from lmcache.l1.namespace import RankGroup
from lmcache.storage.tier import Tier
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry

logger = logging.getLogger(__name__)

# Few chunks are asked for at first, since most prompts that miss miss at once.
_FIRST_WINDOW_CHUNKS = 4
_WINDOW_CHUNKS_MAX = 64


class TierEngine(BackendOperations):
    """A `TierLookups`. `configs`: of every rank; tiers that several name are opened once. `rank_groups`: under which
    a chunk must be held, each once."""

    def __init__(
        self,
        configs: Sequence[EmbeddedConfig],
        model_name: str,
        rank_groups: Sequence[RankGroup],
        metrics: MetricRegistry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigError."""
        self.config = _merged(configs)
        self.metrics = metrics or MetricRegistry()
        self.threads = PeriodicThreadRegistry()
        self._model_name = model_name
        self._rank_groups = tuple(dict.fromkeys(rank_groups))
        self._clock = clock
        boot_id = secrets.randbits(63) | 1
        self._storage = open_storage(self.config, SERVER_UID, boot_id, self.metrics, clock, is_reader=True)
        super().__init__(BackendSet(self.config, self._storage, has_l1=False))
        self._is_closed = False

    def start(self) -> None:
        """Bring the tiers up; waits a moment for them, and those that workers have not made yet come later."""
        self._storage.start(self.threads, OPEN_PATIENCE_S)

    def close(self) -> None:
        """Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._storage.close()
        self.threads.stop_all()

    # Lookup

    def count_leading(self, prompt: Prompt, wait_s: float) -> int:
        """Leading chunks that the tiers hold for every rank, as far as they answer within this time. Holds nothing.
        Raises KeyFormatError."""
        salt = check_cache_salt(prompt.cache_salt)
        ends_s = self._clock() + wait_s
        first, size = 0, _FIRST_WINDOW_CHUNKS
        while first < len(prompt.digests):
            window = prompt.digests[first : first + size]
            keys = [
                ObjectKey(digest, self._model_name, kv_rank, group_id, salt)
                for digest in window
                for kv_rank, group_id in self._rank_groups
            ]
            num_held = self._leading_keys(keys, ends_s) // len(self._rank_groups)
            first += num_held
            if num_held < len(window):
                break
            size = min(2 * size, _WINDOW_CHUNKS_MAX)
        return first

    def _leading_keys(self, keys: list[ObjectKey], ends_s: float) -> int:
        asked = _Asked(len(keys))
        tiers = [tier for _, tier in self._backends.tiers() if tier.route.reads and tier.is_usable]
        for tier in tiers:
            asked.expect()
            tier.submit_lookup(keys, lambda found, tier=tier: asked.answer(tier, keys, found), ends_s)  # type: ignore[misc]
        return asked.wait(max(0.0, ends_s - self._clock()))

    # Operators

    def clear(self, locations: Collection[str] | None = None) -> int:
        """Objects removed, but for those in use. Raises LMCacheError."""
        return self._clear_tiers(locations)

    def freeze(self, is_frozen: bool) -> None:
        """While frozen only L1 would be asked, and there is none."""
        self._backends.change(is_frozen=is_frozen)

    @property
    def has_hot_cache(self) -> bool:
        return False

    def set_hot_cache(self, is_on: bool) -> None:
        """There is no L1 to keep anything in."""

    def check(self, configs: Sequence[EmbeddedConfig]) -> None:
        """Raises ConfigError where `follow` could not apply it."""
        self._backends.check(_merged(configs))

    def follow(self, configs: Sequence[EmbeddedConfig]) -> None:
        """Apply what differs from the configuration before; what cannot be applied is told, and stays as it is."""
        with self._backends.changing:
            self.config = _merged(configs)
            changed = routing_of(self.config)
            del changed["keeps_l1"]
            self._backends.change(**changed)
            self._backends.follow(self.config)

    def store_mock(self, token_ids: Sequence[int]) -> int:
        self._refuse()

    def retrieve_mock(self, token_ids: Sequence[int]) -> int:
        self._refuse()

    def load_fs_chunks(self, config_path: str, num_chunks_max: int | None) -> LoadedChunks:
        self._refuse()

    @staticmethod
    def _refuse() -> NoReturn:
        raise LMCacheError("a scheduler's engine has no KV cache and no L1: ask a worker's API (port 7000 and up)")


class _Asked:
    """What some tiers answer about the same keys. `expect` before each of them is asked."""

    def __init__(self, num_keys: int) -> None:
        self._answered = threading.Condition()
        self._is_held = [False] * num_keys
        self._num_expected = 0

    def expect(self) -> None:
        with self._answered:
            self._num_expected += 1

    def answer(self, tier: Tier, keys: Sequence[ObjectKey], found: Sequence[bool]) -> None:
        tier.release([key for key, is_held in zip(keys, found, strict=True) if is_held])
        with self._answered:
            self._num_expected -= 1
            for position, is_held in enumerate(found):
                self._is_held[position] = self._is_held[position] or is_held
            self._answered.notify_all()

    def wait(self, timeout_s: float) -> int:
        """Leading keys that some tier holds. Who has not answered by then holds nothing."""
        with self._answered:
            self._answered.wait_for(lambda: not self._num_expected or all(self._is_held), timeout_s)
            return next((i for i, is_held in enumerate(self._is_held) if not is_held), len(self._is_held))


def _merged(configs: Sequence[EmbeddedConfig]) -> EmbeddedConfig:
    """One configuration with the tiers of all, those that are the same once."""
    backends: list[Backend] = []
    for config in configs:
        backends += [backend for backend in config.backends if backend not in backends]
    order = list(dict.fromkeys(backend.name for backend in backends))
    backends.sort(key=lambda backend: order.index(backend.name))
    return dataclasses.replace(configs[0], backends=tuple(backends), keeps_l1=False)
