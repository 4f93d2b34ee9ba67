"""`py_enable_gc` and the one garbage collector of the process."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.embedded.gc_switch import GCSwitch


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def config(is_on: bool) -> LMCacheEngineConfig:
    return LMCacheEngineConfig({"py_enable_gc": is_on})


def test_it_is_left_alone_by_default() -> None:
    switch = GCSwitch(LMCacheEngineConfig({}))
    assert gc.isenabled()
    switch.close()
    assert gc.isenabled()


def test_it_rests_until_the_end() -> None:
    switch = GCSwitch(config(False))
    assert not gc.isenabled()
    switch.close()
    switch.close()
    assert gc.isenabled()


def test_it_follows_the_key() -> None:
    followed = config(True)
    switch = GCSwitch(followed)
    for is_on in (False, True, False):
        followed.set("py_enable_gc", is_on)
        assert gc.isenabled() is is_on
    switch.close()
    assert gc.isenabled()
    followed.set("py_enable_gc", True)
    followed.set("py_enable_gc", False)
    assert gc.isenabled()


def test_one_of_two_is_enough() -> None:
    first, second = config(False), config(False)
    switches = [GCSwitch(first), GCSwitch(second)]
    first.set("py_enable_gc", True)
    assert not gc.isenabled()
    switches[0].close()
    assert not gc.isenabled()
    switches[1].close()
    assert gc.isenabled()


def test_what_others_switched_off_stays_off() -> None:
    gc.disable()
    switch = GCSwitch(config(False))
    switch.close()
    assert not gc.isenabled()
