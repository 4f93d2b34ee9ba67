"""Ranks that answer lookups as a test tells them to, over real sockets."""

from __future__ import annotations

import pathlib
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup.address import LookupAddress
from lmcache.embedded.lookup.factory import LookupClientFactory
from lmcache.errors import DeclinedError
from lmcache.testing.paged_memory import make_layout

LONG_MS = 20_000
_PATIENCE_S = 20.0


class Rank:
    """A `LookupTarget` that finds what it is told to, or raises it; while held, it does so later."""

    def __init__(self, num_blocks: int, num_found: int) -> None:
        self.layout = make_layout(num_blocks)
        self.found: int | Exception = num_found
        self.asked: list[tuple[str, Prompt, float]] = []
        self.released: list[str] = []
        self._may_answer = threading.Event()
        self._may_answer.set()
        self._waiting: list[tuple[str, Callable[[int], None]]] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def hold(self) -> None:
        self._may_answer.clear()

    def let_go(self, lookup_id: str = "") -> None:
        """Answer this lookup that came while it was held, or all."""
        if not lookup_id:
            self._may_answer.set()
        for waiting in list(self._waiting):
            if lookup_id in ("", waiting[0]):
                self._waiting.remove(waiting)
                waiting[1](self._answer())

    def _answer(self) -> int:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def introduce(self) -> KVLayout:
        if isinstance(self.found, DeclinedError):
            raise self.found
        return self.layout

    def lookup(self, lookup_id: str, prompt: Prompt, wait_s: float) -> int:
        self.asked.append((lookup_id, prompt, wait_s))
        self._may_answer.wait(_PATIENCE_S)
        return self._answer()

    def lookup_later(self, lookup_id: str, prompt: Prompt, wait_s: float, on_found: Callable[[int], None]) -> None:
        self.asked.append((lookup_id, prompt, wait_s))
        if self._may_answer.is_set():
            on_found(self._answer())
        else:
            self._waiting.append((lookup_id, on_found))

    def release(self, lookup_ids: Iterable[str]) -> int:
        self.released += lookup_ids
        return 0


class Ranks:
    """Clients and servers are made by one configuration, which may change in between."""

    def __init__(self, folder: pathlib.Path, world_size: int = 2, **settings: Any) -> None:
        self.config = LMCacheEngineConfig({"lookup_timeout_ms": LONG_MS} | settings)
        self.targets: list[Any] = [Rank(10 * (rank + 1), 5 - 2 * rank) for rank in range(world_size)]
        self.address = LookupAddress(str(folder), uuid.uuid4().hex[:8])
        self.factory = LookupClientFactory(self.config, self.address, world_size)
        self.servers: dict[int, Any] = {}
        self.client: Any = self.factory.create_lookup_client().client

    def set_timeout_ms(self, timeout_ms: int) -> None:
        self.config.set("lookup_timeout_ms", timeout_ms)

    def renew_client(self) -> None:
        """By the configuration of now."""
        self.client.close()
        self.client = self.factory.create_lookup_client().client

    def start(self, *ranks: int) -> None:
        for rank in ranks:
            self.servers[rank] = self.factory.create_lookup_server(rank, self.targets[rank])
            self.servers[rank].start()

    def close(self) -> None:
        for target in self.targets:
            if isinstance(target, Rank):
                target.let_go()
        self.client.close()
        for server in self.servers.values():
            server.close()


def look_up(client: Any, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int:
    """As a scheduler does it: ask again until there is an answer."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while (found := client.lookup(lookup_id, prompt, may_wait)) is None:
        assert time.monotonic() < deadline_s, "no answer"
        time.sleep(0.001)
    return int(found)
