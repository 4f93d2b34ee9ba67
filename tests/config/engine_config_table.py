"""The tables of docs/engine_config.md, made from the definitions.

`python -m tests.config.engine_config_table` writes them anew.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from lmcache.config.engine.api_keys import APIKeys
from lmcache.config.engine.cache_keys import CacheKeys
from lmcache.config.engine.definition import Definition, collect
from lmcache.config.engine.extra import EXTRA_DEFINITIONS
from lmcache.config.engine.foreign_keys import FAMILIES, ForeignKeys
from lmcache.config.engine.lookup_keys import LookupKeys
from lmcache.config.engine.tier_keys import TierKeys

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "engine_config.md"


def _shown_default(definition: Definition) -> str:
    default = definition.default
    if default is None or default == "":
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return "`[]`"
    return f"`{default}`"


def _meaning(definition: Definition) -> str:
    if definition.refusal:
        return f"{definition.description} Refused: it {definition.refusal}."
    if definition.no_effect:
        return f"{definition.description} No effect: {definition.no_effect}."
    return definition.description


def _rows(definitions: Mapping[str, Definition]) -> str:
    lines = ["| key | default | must be | fixed | meaning |", "|---|---|---|---|---|"]
    for name, definition in definitions.items():
        null = ", or null" if definition.is_nullable else ""
        fixed = "" if definition.mutable else "yes"
        lines.append(
            f"| `{name}` | {_shown_default(definition)} | {definition.kind.allowed}{null} | {fixed} "
            f"| {_meaning(definition)} |"
        )
    return "\n".join(lines)


def _foreign_rows() -> str:
    lines = ["| key | when set |", "|---|---|"]
    for name, definition in collect(ForeignKeys).items():
        answer = f"refused: it {definition.refusal}" if definition.refusal else f"warning: {definition.no_effect}"
        lines.append(f"| `{name}` | {answer} |")
    lines += [f"| `{prefix}*` | warning: {reason} |" for prefix, reason in FAMILIES.items()]
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """By the name that stands in the page's markers."""
    return {
        "cache": _rows(collect(CacheKeys)),
        "tiers": _rows(collect(TierKeys)),
        "lookups": _rows(collect(LookupKeys)),
        "api": _rows(collect(APIKeys)),
        "extra": _rows(EXTRA_DEFINITIONS),
        "foreign": _foreign_rows(),
    }


def with_tables(page: str) -> str:
    for name, table in tables().items():
        begin, end = f"<!-- table {name} -->\n", f"<!-- end {name} -->"
        assert page.count(begin) == page.count(end) == 1, f"the page has no place for the table {name}"
        head, _, rest = page.partition(begin)
        page = f"{head}{begin}{table}\n{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
