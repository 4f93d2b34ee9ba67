"""docs/engine_config.md says of every key what its definition says."""

from __future__ import annotations

import pytest

from lmcache.config.engine.definitions import _CONFIG_DEFINITIONS, ALIASES
from lmcache.config.engine.remote_urls import SCHEMES
from tests.config.engine_config_table import PAGE, tables, with_tables

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the docs are not beside the tests")


def test_the_page_has_the_tables_of_the_definitions() -> None:
    page = PAGE.read_text()
    assert page == with_tables(page), "run `python -m tests.config.engine_config_table`"


def test_no_key_is_missing_from_the_tables() -> None:
    rows = "\n".join(tables().values())
    for key in _CONFIG_DEFINITIONS:
        assert rows.count(f"| `{key}` |") == 1
    for alias, key in ALIASES.items():
        assert f"`{alias}` is" in PAGE.read_text()
        assert key in _CONFIG_DEFINITIONS
    for scheme in SCHEMES:
        assert f"{scheme}://" in PAGE.read_text()
