"""The recorder that a configuration asks for."""

from __future__ import annotations

import time
from collections.abc import Callable

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.config.engine.extra import ExtraSettings
from lmcache.config.engine.views import chunk_statistics_settings, hash_algorithm
from lmcache.core.hashing import make_algorithm
from lmcache.embedded.statistics.base import CountingStrategy
from lmcache.embedded.statistics.file_hash import FileHash
from lmcache.embedded.statistics.limits import AutoExitLimits
from lmcache.embedded.statistics.memory_bloom_filter import MemoryBloomFilter
from lmcache.embedded.statistics.recorder import ChunkStatisticsRecorder
from lmcache.embedded.statistics.rotating_files import RotatingFiles

_Make = Callable[[ExtraSettings, Callable[[], float]], CountingStrategy]


def _memory_bloom_filter(extra: ExtraSettings, wall_clock: Callable[[], float]) -> CountingStrategy:
    return MemoryBloomFilter(
        extra.chunk_statistics_mem_bf_expected_chunks, extra.chunk_statistics_mem_bf_false_positive_rate
    )


def _file_hash(extra: ExtraSettings, wall_clock: Callable[[], float]) -> CountingStrategy:
    files = RotatingFiles(
        extra.chunk_statistics_file_output_dir,
        extra.chunk_statistics_file_rotation_size,
        extra.chunk_statistics_file_max_count,
        wall_clock,
    )
    return FileHash(files)


_STRATEGIES: dict[str, _Make] = {"memory_bloom_filter": _memory_bloom_filter, "file_hash": _file_hash}


def make_recorder(
    config: LMCacheEngineConfig,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
) -> ChunkStatisticsRecorder:
    """It collects already if the configuration says so. What ends it by itself is read anew with every lookup, all
    else is fixed with it. Raises ConfigError."""

    def limits() -> AutoExitLimits:
        return AutoExitLimits(
            config.chunk_statistics_auto_exit_timeout_hours, config.chunk_statistics_auto_exit_target_unique_chunks
        )

    settings = chunk_statistics_settings(config)
    recorder = ChunkStatisticsRecorder(
        _STRATEGIES[settings.strategy](settings.extra, wall_clock),
        make_algorithm(hash_algorithm(config)),
        settings.queue_capacity,
        limits,
        settings.hashes_early,
        clock,
        wall_clock,
    )
    if settings.is_started:
        recorder.start()
    return recorder
