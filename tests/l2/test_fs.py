"""The file system adapter, held to the contract."""

from __future__ import annotations

import pytest

from lmcache.testing.l2_contract import L2AdapterContract
from lmcache.testing.l2_fs import FSBackend
from lmcache.testing.l2_machine import l2_machine


class TestFS(L2AdapterContract):
    @pytest.fixture
    def backend(self, tmp_path):
        return FSBackend(tmp_path)


class TestFSDirect(L2AdapterContract):
    """Past the page cache, where sizes and memory allow it; with the kernel asked to read ahead."""

    @pytest.fixture
    def backend(self, tmp_path):
        return FSBackend(tmp_path, use_odirect=True, read_ahead_size=1 << 20)


TestMachine = l2_machine(FSBackend).TestCase
