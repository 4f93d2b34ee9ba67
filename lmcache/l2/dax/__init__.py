"""Objects in fixed slots of Device-DAX memory, block devices or files, which can come and go while the server runs."""

from __future__ import annotations

from lmcache.l2.base import AdapterContext, L2Adapter
from lmcache.l2.dax.config import DaxConfig as Config

TYPE_NAMES = ("dax",)


def make(config: Config, context: AdapterContext) -> L2Adapter:
    from lmcache.l2.dax.adapter import DaxL2Adapter

    return DaxL2Adapter(config, context)
