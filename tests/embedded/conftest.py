"""Nothing is hurried: what waits a moment for a tier in a user's process waits for as long as it takes here."""

from __future__ import annotations

import pytest

from tests.embedded.site import PATIENCE_S


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier that is asked before it is open holds nothing, which is no answer that a test may get by chance."""
    for module in ("engine", "backends", "tier_engine"):
        monkeypatch.setattr(f"lmcache.embedded.{module}.OPEN_PATIENCE_S", PATIENCE_S)
    monkeypatch.setattr("lmcache.embedded.backends._SETTLE_S", PATIENCE_S)
