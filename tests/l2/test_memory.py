"""The memory adapter, held to the contract."""

from __future__ import annotations

import pytest

from lmcache.testing.l2_contract import L2AdapterContract
from lmcache.testing.l2_machine import l2_machine
from lmcache.testing.l2_memory import MemoryBackend


class TestMemory(L2AdapterContract):
    @pytest.fixture
    def backend(self):
        return MemoryBackend()


TestMachine = l2_machine(MemoryBackend).TestCase
