"""docs/metrics.md against a real server: every metric has its row there, with its type and labels, and no other has."""

from __future__ import annotations

import pathlib
import re
from collections import Counter

import httpx
import pytest

from tests.http.scraping import Family, families

_DOCS = pathlib.Path(__file__).parents[2] / "docs"
_ROW = re.compile(r"^\| `(\w+)` \| (counter|histogram|gauge) \|([^|]*)\| ([^|]+) \|$", re.MULTILINE)
_MENTIONED = re.compile(r"\blmcache_mp_\w+[a-z]\b")


def page(name: str) -> str:
    """A checkout has the documentation, an installed package does not."""
    if not _DOCS.exists():
        pytest.skip("there is no documentation beside the package")
    return (_DOCS / name).read_text(encoding="utf-8")


def rows() -> list[Family]:
    found = _ROW.findall(page("metrics.md"))
    return [Family(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in found]


def test_the_page_is_what_is_served(http: httpx.Client) -> None:
    served, documented = families(http), set(rows())
    assert served - documented == set()
    assert documented - served == set()
    assert len(served) > 60


def test_each_has_one_row() -> None:
    assert [name for name, count in Counter(row.name for row in rows()).items() if count > 1] == []


@pytest.mark.parametrize("name", ["operations.md", "http_api.md", "l2_adapters.md", "metrics_embedded.md", "dax.md"])
def test_other_pages_name_only_metrics_that_there_are(name: str) -> None:
    """With or without the suffix of counters; a name may stand for the ones that begin like it."""
    known = {row.name for row in rows()}
    for mentioned in set(_MENTIONED.findall(page(name))):
        assert any(each.startswith(mentioned) for each in known), mentioned
