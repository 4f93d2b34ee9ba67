"""What listens on a rank that answers no lookups: the scheduler must know every rank to name its keys."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable

from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup.base import LookupTarget
from lmcache.embedded.lookup.server import LMCacheLookupServer
from lmcache.errors import LMCacheError

# Of no client, and of no server as far as operators can see.
NO_NAME = "None"


class IntroductionServer(LMCacheLookupServer):
    """A `LookupServer` that tells who it is, and why it answers nothing else. Goes by no name."""

    def __init__(self, path: pathlib.Path, target: LookupTarget) -> None:
        super().__init__(path, _Introduced(target))

    def name(self) -> str:
        return NO_NAME


class _Introduced:
    """A `LookupTarget` of which only the name is told."""

    def __init__(self, target: LookupTarget) -> None:
        self._target = target

    def introduce(self) -> KVLayout:
        return self._target.introduce()

    def lookup(self, lookup_id: str, prompt: Prompt, wait_s: float) -> int:
        raise LMCacheError("a rank that was asked has no lookup server (lookup_server_worker_ids, or it was closed)")

    def lookup_later(self, lookup_id: str, prompt: Prompt, wait_s: float, on_found: Callable[[int], None]) -> None:
        on_found(self.lookup(lookup_id, prompt, wait_s))

    def release(self, lookup_ids: Iterable[str]) -> int:
        return self._target.release(lookup_ids)
