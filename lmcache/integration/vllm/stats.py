"""Our figures on vLLM's side: `KVConnectorStats` and Prometheus metrics."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

# Figure -> (what it is, whether it is a sum of seconds).
COUNTERS = {
    "lookups": "Prompts looked up",
    "lookup_tokens": "Tokens of prompts looked up",
    "hit_tokens": "Tokens promised by the server",
    "loaded_tokens": "Tokens whose KV vLLM took from the cache",
    "loads": "Loads that delivered",
    "failed_loads": "Loads that failed and were recomputed",
    "load_bytes": "Bytes loaded",
    "load_seconds": "Seconds from submission to end of loads",
    "stores": "Store jobs that ended, whatever their outcome",
    "stored_chunks": "Chunks stored",
    "store_bytes": "Bytes stored",
    "store_seconds": "Seconds of store jobs",
    "dropped_stores": "Store jobs dropped: too late, too many waiting, no server or no room",
}


class MPConnectorStats(KVConnectorStats):
    """Sums since the last report; `data` holds only figures that are not zero."""

    def add(self, name: str, amount: float = 1) -> None:
        if amount:
            self.data[name] = self.data.get(name, 0) + amount

    def drain(self) -> MPConnectorStats | None:
        """What was counted since the last call; None if nothing was."""
        if self.is_empty():
            return None
        taken = MPConnectorStats(data=self.data)
        self.reset()
        return taken

    def reset(self) -> None:
        self.data: dict[str, float] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name, amount in other.data.items():
            self.add(name, amount)
        return self

    def reduce(self) -> dict[str, int | float]:
        reduced: dict[str, int | float] = {name: round(amount, 3) for name, amount in self.data.items()}
        for direction in ("load", "store"):
            seconds = self.data.get(f"{direction}_seconds", 0)
            if seconds:
                reduced[f"{direction}_GB_per_s"] = round(self.data.get(f"{direction}_bytes", 0) / seconds / 1e9, 2)
        return reduced

    def is_empty(self) -> bool:
        return not self.data


class MPConnectorPromMetrics(KVConnectorPromMetrics):
    """One counter per figure, `vllm:lmcache_<figure>`."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {
            name: self._counter_cls(name=f"vllm:lmcache_{name}", documentation=text, labelnames=labelnames)
            for name, text in COUNTERS.items()
        }
        for counter in self._counters.values():
            for labels in per_engine_labelvalues.values():
                counter.labels(*labels)  # there from the start, at 0

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self.per_engine_labelvalues[engine_idx]
        for name, amount in transfer_stats_data.items():
            if name in self._counters:
                self._counters[name].labels(*labels).inc(amount)
