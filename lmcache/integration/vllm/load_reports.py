"""What the ranks report of loads under way, until the last of them has, and what a failed one makes doubtful."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lmcache.integration.vllm.metadata import MPWorkerReport
from lmcache.integration.vllm.save_planner import SavePlanner
from lmcache.integration.vllm.saves import SaveLedger
from lmcache.integration.vllm.stats import MPConnectorStats
from lmcache.integration.vllm.tracker import LoadState, RequestTracker


class LoadReports:
    """Belongs to the scheduler's thread. `on_over` is told of every load that all ranks are done with."""

    def __init__(
        self,
        world_size: int,
        trackers: Mapping[str, RequestTracker],
        planner: SavePlanner,
        saves: SaveLedger,
        stats: MPConnectorStats,
        on_over: Callable[[RequestTracker], None],
    ) -> None:
        self._world_size = world_size
        self._trackers = trackers
        self._planner = planner
        self._saves = saves
        self._stats = stats
        self._on_over = on_over
        self._loading: set[str] = set()

    @property
    def is_any_pending(self) -> bool:
        return bool(self._loading)

    def begin(self, tracker: RequestTracker, num_tokens: int, block_ids: tuple[int, ...]) -> None:
        tracker.load_state = LoadState.PENDING
        tracker.loaded_tokens, tracker.loading_blocks = num_tokens, block_ids
        self._loading.add(tracker.request_id)

    def take(self, output: Any) -> None:
        """The output of a step, as vLLM put it together from all ranks."""
        report = output.kv_connector_worker_meta
        if isinstance(report, MPWorkerReport):
            self._take_report(report)
        for request_id in output.finished_recving or ():
            self._end(request_id, request_id in (output.failed_recving or ()))

    def _take_report(self, report: MPWorkerReport) -> None:
        self._planner.take_report(report)
        failed = []
        for request_id, count in report.loads.items():
            tracker = self._trackers.get(request_id)
            if tracker is None:
                continue
            tracker.has_failed |= request_id in report.failed_loads
            tracker.num_ranks_loaded += count
            if tracker.num_ranks_loaded >= self._world_size:
                self._end(request_id, tracker.has_failed)
                failed += [tracker] if tracker.has_failed else []
        if failed:
            self._distrust(failed)

    def _end(self, request_id: str, has_failed: bool) -> None:
        """Every rank is done with the promised places."""
        tracker = self._trackers.get(request_id)
        if tracker is None:
            return
        tracker.load_state, tracker.num_ranks_loaded = LoadState.NONE, 0
        self._loading.discard(request_id)
        if has_failed:
            tracker.has_failed = True
            # What was held may be gone: let it be stored again as it is computed.
            tracker.num_known_chunks = 0
            self._stats.add("failed_loads")
        else:
            self._stats.add("loaded_tokens", tracker.loaded_tokens)
        self._on_over(tracker)

    def _distrust(self, failed: list[RequestTracker]) -> None:
        """Synchronous loads failed: vLLM has their blocks in its prefix cache already, and keeps them there.

        They leave it, and no running request that may share them is saved any more. One request
        that failed alone recomputes its own blocks, so its saves are right again.
        """
        for tracker in failed:
            self._saves.forget_cached(tracker.loading_blocks)
        self._planner.unfollow_all(but=failed[0].request_id if len(failed) == 1 else None)
