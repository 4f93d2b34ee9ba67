"""Faults around any adapter, by rate and seed: to try out what a bad backend does to a service."""

from __future__ import annotations

from lmcache.l2.base import AdapterContext, L2Adapter
from lmcache.l2.fault_inject.config import FaultInjectConfig as Config

TYPE_NAMES = ("fault_inject",)


def make(config: Config, context: AdapterContext) -> L2Adapter:
    from lmcache.l2.fault_inject.adapter import make_around

    return make_around(config, context)
