"""An adapter as somebody else would write one, for the tests of plugins."""

from __future__ import annotations

from dataclasses import dataclass

from lmcache.core.sizes import GIB
from lmcache.errors import ConfigError
from lmcache.l2.base import L2Adapter
from lmcache.l2.memory.adapter import MockL2Adapter
from lmcache.l2.memory.config import MemoryConfig


@dataclass(frozen=True)
class Settings:
    greeting: str
    is_loud: bool = False


class ShoutingAdapter(MockL2Adapter):
    def __init__(self, settings, context, capacity_bytes):
        super().__init__(MemoryConfig((capacity_bytes or GIB) / GIB), context)
        self.settings = settings


class Unfinished(L2Adapter):
    """Implements nothing."""


class Choosy(ShoutingAdapter):
    def __init__(self, settings, context, capacity_bytes):
        raise ConfigError("this adapter wants a greeting")


class Broken(ShoutingAdapter):
    def __init__(self, settings, context, capacity_bytes):
        raise KeyError("greeting")


class WrongSignature(ShoutingAdapter):
    def __init__(self, settings):
        super().__init__(settings, None, 0)


class NoAdapter:
    pass


not_a_class = 5
