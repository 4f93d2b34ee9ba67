"""A finding: what does not fit, why, and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    """ERROR: vLLM does not start, or runs without cache. WARNING: something is not as its writer hopes."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


_ORDER = tuple(Level)


@dataclass(frozen=True, slots=True)
class Finding:
    """Each text is one line."""

    level: Level
    what: str
    why: str = ""
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        return {"level": self.level.value, "what": self.what, "why": self.why, "remedy": self.remedy}


def error(what: str, why: str = "", remedy: str = "") -> Finding:
    return Finding(Level.ERROR, what, why, remedy)


def warning(what: str, why: str = "", remedy: str = "") -> Finding:
    return Finding(Level.WARNING, what, why, remedy)


def note(what: str, why: str = "", remedy: str = "") -> Finding:
    return Finding(Level.NOTE, what, why, remedy)


def of_line(level: Level, line: str) -> Finding:
    """From a line of the settings' own checks: what comes before a guess at a name is what was wrong."""
    what, _, guess = line.partition("; did you mean ")
    return Finding(level, what, "", f"write {guess.rstrip('?')}" if guess else "")


def sort_findings(findings: list[Finding]) -> list[Finding]:
    """The worst first, otherwise in the order of the checks; each once."""
    return sorted(dict.fromkeys(findings), key=lambda finding: _ORDER.index(finding.level))
