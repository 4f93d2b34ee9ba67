"""Our instruments in Prometheus' own terms: a collector over plain numbers.

It fits any registry of prometheus_client; nothing is copied until someone scrapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from lmcache.telemetry.metrics import Counter, Gauge, Histogram, Instrument, Labels, MetricRegistry

_SALT = "cache_salt"


class MetricsCollector(Collector):
    """Counters get the suffix `_total`. The label of an empty cache salt is left out."""

    def __init__(self, registry: MetricRegistry) -> None:
        self._registry = registry

    def describe(self) -> Iterable[Metric]:
        """Nothing: to register must not read the gauges."""
        return ()

    def collect(self) -> Iterable[Metric]:
        return [_family(instrument) for instrument in self._registry.all()]


def _family(instrument: Instrument) -> Metric:
    if isinstance(instrument, Counter):
        name = instrument.name.removesuffix("_total")
        family = Metric(name, instrument.help_text, "counter")
        family.samples = [
            Sample(name + "_total", _labels(instrument, values), number)
            for values, number in instrument.values().items()
        ]
    elif isinstance(instrument, Gauge):
        family = Metric(instrument.name, instrument.help_text, "gauge")
        family.samples = [
            Sample(instrument.name, _labels(instrument, values), number) for values, number in instrument.read().items()
        ]
    else:
        family = Metric(instrument.name, instrument.help_text, "histogram")
        family.samples = _histogram_samples(instrument)
    return family


def _histogram_samples(histogram: Histogram) -> list[Sample]:
    name = histogram.name
    bounds = [*(str(float(bound)) for bound in histogram.buckets), "+Inf"]
    samples = []
    for values, distribution in histogram.values().items():
        labels = _labels(histogram, values)
        counts = list(accumulate(distribution.counts))
        for bound, count in zip(bounds, counts, strict=True):
            samples.append(Sample(name + "_bucket", {**labels, "le": bound}, count))
        samples.append(Sample(name + "_count", labels, counts[-1]))
        samples.append(Sample(name + "_sum", labels, distribution.total))
    return samples


def _labels(instrument: Instrument, values: Labels) -> dict[str, str]:
    return {name: value for name, value in zip(instrument.label_names, values, strict=True) if value or name != _SALT}
