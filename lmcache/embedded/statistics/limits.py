"""When counting ends by itself. Pure: the moment and the counts are given."""

from __future__ import annotations

from dataclasses import dataclass

_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class AutoExitLimits:
    """0: no such limit. `timeout_hours` runs from the first lookup that is counted after a start."""

    timeout_hours: float = 0.0
    target_unique_chunks: int = 0

    def reason_to_stop(self, counted_for_s: float, num_unique: int) -> str:
        """In words, or nothing."""
        if 0 < self.timeout_hours <= counted_for_s / _HOUR_S:
            return f"{self.timeout_hours:g} hours are over"
        if 0 < self.target_unique_chunks <= num_unique:
            return f"{num_unique} unique chunks were counted"
        return ""

    def figures(self) -> dict[str, object]:
        return {
            "auto_exit_enabled": self.timeout_hours > 0 or self.target_unique_chunks > 0,
            "auto_exit_timeout_hours": self.timeout_hours,
            "auto_exit_target_unique_chunks": self.target_unique_chunks,
        }
