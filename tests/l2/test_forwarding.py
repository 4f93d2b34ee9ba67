"""An adapter around another one must pass on every call of the contract, also those added later."""

from __future__ import annotations

import inspect

from lmcache.l2.base import L2Adapter
from lmcache.l2.forwarding import ForwardingL2Adapter

OWN = {"is_reconfigurable"}  # follows from what is passed on


def test_every_call_is_passed_on():
    calls = {
        name
        for name, member in inspect.getmembers(L2Adapter)
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    }
    assert calls - OWN <= set(vars(ForwardingL2Adapter))


def test_every_attribute_is_taken_over():
    attributes = {name for name in L2Adapter.__annotations__ if not name.startswith("_")}
    source = inspect.getsource(ForwardingL2Adapter.__init__)
    assert {name for name in attributes if f"self.{name} = inner.{name}" not in source} == set()
