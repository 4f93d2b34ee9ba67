"""Objects as files under one folder, which several servers may share."""

from __future__ import annotations

from lmcache.l2.base import AdapterContext, L2Adapter
from lmcache.l2.fs.config import FSConfig as Config

TYPE_NAMES = ("fs", "fs_native")


def make(config: Config, context: AdapterContext) -> L2Adapter:
    from lmcache.l2.fs.adapter import FSL2Adapter

    return FSL2Adapter(config, context)
