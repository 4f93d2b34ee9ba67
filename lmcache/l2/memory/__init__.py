"""Objects in the server's own memory: the adapter to copy, for tests and for trying things out."""

from __future__ import annotations

from lmcache.l2.base import AdapterContext, L2Adapter
from lmcache.l2.memory.config import MemoryConfig as Config

TYPE_NAMES = ("memory", "mock")


def make(config: Config, context: AdapterContext) -> L2Adapter:
    from lmcache.l2.memory.adapter import MockL2Adapter

    return MockL2Adapter(config, context)
