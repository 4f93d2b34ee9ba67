"""Adapters from outside this package: a class, named by its module."""

from __future__ import annotations

from lmcache.l2.base import AdapterContext, L2Adapter
from lmcache.l2.plugin.config import PluginConfig as Config

TYPE_NAMES = ("plugin", "native_plugin")


def make(config: Config, context: AdapterContext) -> L2Adapter:
    from lmcache.l2.plugin.loading import make_plugin

    return make_plugin(config, context)
