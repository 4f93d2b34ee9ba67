"""What one half of the in-process mode counts, under the documented names and labels.

Whoever does something tells it here in its own words; whoever holds something lets it be read. One
mutex each, a few additions: what is told costs microseconds. Knows no engine and no exposition.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from lmcache.embedded.metric_names import COUNTERS, GAUGES, HISTOGRAMS, PREFIX, choose_buckets
from lmcache.telemetry.metrics import Labels, MetricRegistry

LABEL_NAMES = ("model_name", "worker_id", "role", "served_model_name")
_RECENT_MAX = 1000

# None: there is nothing to tell now, and no series.
ReadGauge = Callable[[], float | None]


class EmbeddedMetrics:
    """Thread-safe. `registry` is this half's: reset and exposition go there.

    Gauges are there once somebody lets them be read.
    """

    def __init__(
        self,
        model_name: str,
        served_model_name: str,
        role: str,
        worker_id: int,
        extra_config: Mapping[str, object] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`clock`: for whoever measures what is told here. Raises ConfigError for buckets that are none."""
        self.clock = clock
        self.registry = MetricRegistry()
        self._labels: Labels = (model_name, str(worker_id), role, served_model_name)
        buckets = choose_buckets(extra_config)
        self._counters = {
            name: self.registry.counter(PREFIX + name, text, *LABEL_NAMES) for name, text in COUNTERS.items()
        }
        for counter in self._counters.values():
            counter.begin(*self._labels)
        self._histograms = {
            name: self.registry.histogram(PREFIX + name, text, *LABEL_NAMES, buckets=buckets[name])
            for name, (text, _) in HISTOGRAMS.items()
        }
        self._readers: dict[str, ReadGauge] = {}
        self._mutex = threading.Lock()
        self._retrieves, self._lookups = RecentShare(), RecentShare()
        self.watch("retrieve_hit_rate", self._retrieves.share)
        self.watch("lookup_hit_rate", self._lookups.share)

    @classmethod
    def unshown(cls) -> EmbeddedMetrics:
        """For a part that nobody watches."""
        return cls("", "", "", 0)

    def _add(self, name: str, amount: float = 1) -> None:
        self._counters[name].add(amount, *self._labels)

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(value, *self._labels)

    # The scheduler

    def prompt_seen(self, num_tokens: int, num_vllm_hit_tokens: int) -> None:
        """A request came for the first time, with so much of it in vLLM's own cache."""
        self._add("num_prompt_tokens", num_tokens)
        self._add("num_vllm_hit_tokens", num_vllm_hit_tokens)

    def looked_up(self, num_tokens: int, num_hit_tokens: int, seconds: float) -> None:
        """`num_tokens`: of the chunks that were asked for."""
        self._add("num_lookup_requests")
        self._add("num_lookup_tokens", num_tokens)
        self._add("num_lookup_hits", num_hit_tokens)
        self._add("lookup_0_hit_requests", not num_hit_tokens)
        self._observe("time_to_lookup", seconds)
        self._lookups.add(num_tokens, num_hit_tokens)
        if num_tokens:
            self._observe("request_cache_hit_rate", num_hit_tokens / num_tokens)

    # The rank's own thread

    def retrieved(self, num_tokens: int, num_hit_tokens: int, seconds: float) -> None:
        """A load into pages ended; a failed one has no hit tokens."""
        self._add("num_retrieve_requests")
        self._add("num_requested_tokens", num_tokens)
        self._add("num_hit_tokens", num_hit_tokens)
        self._observe("time_to_retrieve", seconds)
        self._retrieves.add(num_tokens, num_hit_tokens)
        if num_hit_tokens and seconds > 0:
            self._observe("retrieve_speed", num_hit_tokens / seconds)

    def stored(self, num_tokens: int, seconds: float) -> None:
        """A store ended; tokens that were there already are not counted."""
        self._add("num_store_requests")
        self._add("num_stored_tokens", num_tokens)
        self._observe("time_to_store", seconds)
        if num_tokens and seconds > 0:
            self._observe("store_speed", num_tokens / seconds)

    def scattered(self, seconds: float) -> None:
        """The copying of a retrieve."""
        self._observe("retrieve_to_gpu_time", seconds)

    def gathered(self, seconds: float) -> None:
        """The copying of a store."""
        self._observe("store_from_gpu_time", seconds)

    def handed_on(self, seconds: float) -> None:
        """What a store made was put into the tiers' queues."""
        self._observe("store_put_time", seconds)

    def made_room(self, num_evicted: int, num_without_room: int) -> None:
        """L1 was asked for room, evicted that many objects for it, and had none for so many."""
        if num_evicted:
            self._add("local_cpu_evict_count")
            self._add("local_cpu_evict_keys_count", num_evicted)
        self._add("local_cpu_evict_failed_count", num_without_room)

    def unpinned(self, num_lookups: int) -> None:
        """Locks of so many lookups ended by time."""
        self._add("forced_unpin_count", num_lookups)

    # Threads of remote tiers

    def remote_read(self, num_bytes: int, seconds: float) -> None:
        self._add("num_remote_read_requests")
        self._add("num_remote_read_bytes", num_bytes)
        self._observe("remote_time_to_get", seconds * 1000)

    def remote_written(self, num_bytes: int, seconds: float) -> None:
        self._add("num_remote_write_requests")
        self._add("num_remote_write_bytes", num_bytes)
        self._observe("remote_time_to_put", seconds * 1000)

    # Gauges

    def watch(self, name: str, read: ReadGauge) -> None:
        """Have a documented gauge read from here, instead of where it was read before, if it was."""
        with self._mutex:
            is_new = name not in self._readers
            self._readers[name] = read
        if is_new:
            self.registry.gauge(PREFIX + name, GAUGES[name], lambda: self._read(name), *LABEL_NAMES)

    def _read(self, name: str) -> dict[Labels, float]:
        value = self._readers[name]()
        return {} if value is None else {self._labels: value}


class RecentShare:
    """Of what the last requests asked for, the share they got. Thread-safe."""

    def __init__(self, num_requests: int = _RECENT_MAX) -> None:
        self._recent: deque[tuple[int, int]] = deque()
        self._num_requests = num_requests
        self._num_asked = self._num_got = 0
        self._mutex = threading.Lock()

    def add(self, num_asked: int, num_got: int) -> None:
        with self._mutex:
            self._recent.append((num_asked, num_got))
            self._num_asked += num_asked
            self._num_got += num_got
            if len(self._recent) > self._num_requests:
                old_asked, old_got = self._recent.popleft()
                self._num_asked -= old_asked
                self._num_got -= old_got

    def share(self) -> float | None:
        """None while nothing was asked for."""
        with self._mutex:
            return self._num_got / self._num_asked if self._num_asked else None
