"""The contract suite's assertions tell what they saw, as those of a test file do."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "lmcache.testing.l2_backend",
    "lmcache.testing.l2_contract",
    "lmcache.testing.l2_contract_damage",
    "lmcache.testing.l2_contract_room",
    "lmcache.testing.l2_contract_listing",
    "lmcache.testing.l2_machine",
)
