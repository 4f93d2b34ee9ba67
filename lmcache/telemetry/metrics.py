"""Counters, gauges and histograms as plain numbers, and the set the server keeps of them.

Rendering for Prometheus is in exposition.py; whoever counts needs none of it.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TypeVar

Labels = tuple[str, ...]

# Label values come from outside (a salt per user): past this many, the rest is counted as one.
CHILDREN_MAX = 1000
OTHER = "other"

# The buckets documented for instruments that set none.
DEFAULT_BUCKETS = (0, 5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000)


def _child(known: Collection[Labels], labels: Labels) -> Labels:
    return labels if labels in known or len(known) < CHILDREN_MAX else (OTHER,) * len(labels)


class Counter:
    """A number that only grows, per combination of label values. Thread-safe."""

    def __init__(self, name: str, help_text: str, label_names: Labels = ()) -> None:
        self.name = name
        self.help_text = help_text
        self.label_names = label_names
        self._values: dict[Labels, float] = {}
        self._mutex = threading.Lock()

    def add(self, amount: float = 1, *labels: str) -> None:
        if not amount:
            return
        with self._mutex:
            labels = _child(self._values, labels)
            self._values[labels] = self._values.get(labels, 0) + amount

    def begin(self, *labels: str) -> None:
        """Be seen from now on, at 0: a rate needs to know where a count began."""
        with self._mutex:
            self._values.setdefault(_child(self._values, labels), 0)

    def values(self) -> dict[Labels, float]:
        with self._mutex:
            return dict(self._values)

    def value(self, *labels: str) -> float:
        with self._mutex:
            return self._values.get(labels, 0)

    def reset(self) -> None:
        with self._mutex:
            self._values = dict.fromkeys(self._values, 0)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Counts per bucket (not cumulative, the last one open), and the sum of what was observed."""

    counts: tuple[int, ...]
    total: float


class Histogram:
    """Observations by bucket, per combination of label values. Thread-safe."""

    def __init__(
        self, name: str, help_text: str, label_names: Labels = (), buckets: tuple[float, ...] = DEFAULT_BUCKETS
    ) -> None:
        self.name = name
        self.help_text = help_text
        self.label_names = label_names
        self.buckets = buckets
        self._counts: dict[Labels, list[int]] = {}
        self._totals: dict[Labels, float] = {}
        self._mutex = threading.Lock()

    def observe(self, value: float, *labels: str) -> None:
        with self._mutex:
            labels = _child(self._counts, labels)
            counts = self._counts.setdefault(labels, [0] * (len(self.buckets) + 1))
            counts[bisect_left(self.buckets, value)] += 1
            self._totals[labels] = self._totals.get(labels, 0.0) + value

    def values(self) -> dict[Labels, Distribution]:
        with self._mutex:
            return {
                labels: Distribution(tuple(counts), self._totals[labels]) for labels, counts in self._counts.items()
            }

    def reset(self) -> None:
        with self._mutex:
            self._counts = {labels: [0] * (len(self.buckets) + 1) for labels in self._counts}
            self._totals = dict.fromkeys(self._totals, 0.0)


@dataclass(frozen=True, slots=True)
class Gauge:
    """A number as it is now, read when someone asks. `read` must be quick and thread-safe."""

    name: str
    help_text: str
    label_names: Labels
    read: Callable[[], dict[Labels, float]]


Instrument = Counter | Histogram | Gauge
T = TypeVar("T", Counter, Histogram, Gauge)


@dataclass(slots=True)
class MetricRegistry:
    """Every instrument of one process, in order of creation. Names are unique.

    `attached`: registries of parts that come and go, whose names are their own.
    """

    instruments: dict[str, Instrument] = field(default_factory=dict)
    attached: list[MetricRegistry] = field(default_factory=list)

    def counter(self, name: str, help_text: str, *label_names: str) -> Counter:
        return self._add(Counter(name, help_text, label_names))

    def histogram(
        self, name: str, help_text: str, *label_names: str, buckets: tuple[float, ...] = DEFAULT_BUCKETS
    ) -> Histogram:
        return self._add(Histogram(name, help_text, label_names, buckets))

    def gauge(self, name: str, help_text: str, read: Callable[[], dict[Labels, float]], *label_names: str) -> Gauge:
        return self._add(Gauge(name, help_text, label_names, read))

    def _add(self, instrument: T) -> T:
        if instrument.name in self.instruments:
            raise ValueError(f"metric {instrument.name} exists already")
        self.instruments[instrument.name] = instrument
        return instrument

    def attach(self, part: MetricRegistry) -> Callable[[], None]:
        """Show and reset these with our own from now on. Returns the way to end it, which may be called again."""
        self.attached = [*self.attached, part]

        def detach() -> None:
            self.attached = [each for each in self.attached if each is not part]

        return detach

    def all(self) -> list[Instrument]:
        """Our own, then those of the parts. A name that came up already is left out: nobody can read it twice."""
        found = dict(self.instruments)
        for part in self.attached:
            for instrument in part.all():
                found.setdefault(instrument.name, instrument)
        return list(found.values())

    def reset(self) -> None:
        """Counters and histograms back to 0, label children included; gauges tell the present."""
        for instrument in self.all():
            if not isinstance(instrument, Gauge):
                instrument.reset()
