"""What is changed about a running engine for the length of a test: its settings, and what goes wrong with its loads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tests.vllm_v1.driver import EmbeddedDriver

_SET = """
halves = [scheduler.connector._lmcache_engine.config, get_kv_transfer_group()._lmcache_engine.config]
result = {name: getattr(halves[0], name) for name in wanted}
for config in halves:
    for name, value in wanted.items():
        config.set(name, value)
"""
# L1 is cleared by force once a load has reached a step: what it was promised is gone, locks or no locks.
CLEAR_AT = """
class ClearAt:
    def __init__(self, step):
        self.step, self.num_reached = step, 0
    def reached(self, step):
        if step == self.step:
            self.num_reached += 1
            if self.num_reached == 2:
                worker.engine.l1.clear(True)
worker.engine._transfers._steps = ClearAt(step)
"""
STOP_CLEARING = """
from lmcache.telemetry.steps import NO_STEPS
worker.engine._transfers._steps = NO_STEPS
"""
# Layers arrive later than vLLM would ever ask for them, so that whoever does not wait is found out.
_LAG = """
import time
from lmcache.embedded.layer_transfers import LayerLoad
engine.copy_layer = LayerLoad.copy
LayerLoad.copy = lambda load, layer: time.sleep(0.02) or engine.copy_layer(load, layer)
"""
_CATCH_UP = """
from lmcache.embedded.layer_transfers import LayerLoad
LayerLoad.copy = engine.copy_layer
"""


@contextlib.contextmanager
def changed(engine: EmbeddedDriver, **wanted: Any) -> Iterator[None]:
    """In both halves."""
    before = engine.run(_SET, wanted=wanted)
    try:
        yield
    finally:
        engine.run(_SET, wanted=before)


@contextlib.contextmanager
def lagging(engine: EmbeddedDriver) -> Iterator[None]:
    """Loads by layers take their time."""
    engine.run(_LAG)
    try:
        yield
    finally:
        engine.run(_CATCH_UP)
