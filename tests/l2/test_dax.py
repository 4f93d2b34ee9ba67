"""The DAX adapter, held to the contract: on files, and on files mapped as devices are."""

from __future__ import annotations

import pytest

from lmcache.testing.l2_backend import Bench
from lmcache.testing.l2_contract import L2AdapterContract
from lmcache.testing.l2_dax import DaxBackend
from lmcache.testing.l2_machine import l2_machine


class TestDax(L2AdapterContract):
    @pytest.fixture
    def backend(self):
        return DaxBackend()

    def test_the_status_is_healthy(self, bench: Bench) -> None:
        """Its type is the documented one, not the class name that other adapters report."""
        status = bench.adapter.report_status()
        assert status["is_healthy"] is True
        assert status["type"] == "dax"


class TestDaxMapped(TestDax):
    @pytest.fixture
    def backend(self):
        return DaxBackend(is_mapped=True)


class _AmpleDaxBackend(DaxBackend):
    """What lies beyond the slots of a smaller adapter is not found by it; the model knows nothing of that.
    The model of hotplug (`test_dax_hotplug_machine`) has full devices."""

    respects_capacity = False


TestMachine = l2_machine(_AmpleDaxBackend).TestCase
