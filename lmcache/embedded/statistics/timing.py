"""Where the time of counted lookups went: into the lookup itself, or into handing it over to be counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LookupTimes:
    """Sums, in seconds. The owner guards it."""

    lookup_s: float = 0.0
    record_s: float = 0.0
    check_s: float = 0.0

    def figures(self) -> dict[str, object]:
        overhead_s = self.record_s + self.check_s
        total_s = self.lookup_s + overhead_s
        return {
            "lookup_time_seconds": self.lookup_s,
            "record_statistics_time_seconds": self.record_s,
            "check_exit_conditions_time_seconds": self.check_s,
            "total_time_seconds": total_s,
            "overhead_time_seconds": overhead_s,
            "overhead_percentage": 100 * overhead_s / total_s if total_s > 0 else 0.0,
        }
