"""Named steps of the transfer protocol, for whoever wants to watch or to break them.

The product runs with `NO_STEPS`. Tests pass an observer that kills or stops its own
process at a chosen step, so that every boundary is met exactly, not by luck.
"""

from __future__ import annotations

from typing import Protocol


class StepObserver(Protocol):
    def reached(self, step: str) -> None: ...


class _NoSteps:
    def reached(self, step: str) -> None:
        """Nobody is watching."""


NO_STEPS: StepObserver = _NoSteps()
