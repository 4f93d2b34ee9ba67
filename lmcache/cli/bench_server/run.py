"""One run: requests stored from one half of the engine's pages, retrieved into the other half, and compared.

Sources and targets are different blocks in random order. Targets are overwritten before
each retrieve, so that a page nobody wrote to shows.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lmcache.cli.bench_server.page_check import PageCheck
from lmcache.cli.bench_server.report import RunFacts, RunReport
from lmcache.core.hashing import chunk_digests, make_algorithm
from lmcache.errors import ServerUnavailableError
from lmcache.integration.mp.jobs import LoadChunk, LoadJob, LoadResult, StoreJob, StoreOutcome, StoreResult
from lmcache.integration.mp.lookups import Promise
from lmcache.integration.synthetic.engine import SyntheticEngine
from lmcache.protocol import messages as m
from lmcache.telemetry.steps import NO_STEPS, StepObserver

# Steps a watcher is told of, beside those of the transfers.
STORED = "bench.stored"

_POISON = 0xA5
_TOKEN_IDS = 1 << 17
_POLL_S = 0.0001
_SLICE_S = 0.05
# Engines take a server that does not answer for a miss at once; here it is asked again.
_PATIENCE_S = 3.0

_Result = TypeVar("_Result", StoreResult, LoadResult)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """`num_requests`: at least 1. `num_warm_up`: requests before the measured ones; they are checked as well."""

    num_requests: int
    num_warm_up: int
    num_lookups: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Request:
    """`sources[i]` and `targets[i]` are the blocks of chunk i."""

    number: int
    name: str
    digests: tuple[bytes, ...]
    sources: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...]


class BenchRun:
    """Used once, by one thread."""

    def __init__(
        self, engine: SyntheticEngine, plan: RunPlan, facts: RunFacts, check: PageCheck | None = None,
        steps: StepObserver = NO_STEPS,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._plan = plan
        self._check = check
        self._steps = steps
        self._random = np.random.default_rng(plan.seed)
        self._report = RunReport(facts, num_digests=None if check is None else 0)
        self._half = engine.pages.shape[1] // 2

    def run(self) -> RunReport:
        """Raises ServerUnavailableError if the server is lost."""
        for pages in self._engine.pages[:, : self._half]:
            pages[...] = np.frombuffer(self._random.bytes(pages.nbytes), np.uint8).reshape(pages.shape)
        for number in range(self._plan.num_warm_up + self._plan.num_requests):
            move_s = self._move()
            request = self._make_request(number)
            self._serve(request, move_s if number >= self._plan.num_warm_up else None)
        for number in range(self._plan.num_lookups):
            asked = dataclasses.replace(request, name=f"lookup-{number}")
            promise, took_s = self._look_up(asked)
            self._end(asked, promise)
            self._report.lookup_s.append(took_s)
        return self._report

    def _move(self) -> float:
        """Seconds of one memmove of a request's bytes, as cold as what is copied later; it spoils the pages."""
        whole = self._engine.pages.reshape(-1)
        middle = whole.size // 2
        begun_s = time.perf_counter()
        np.copyto(whole[middle:], whole[:middle])
        return time.perf_counter() - begun_s

    def _make_request(self, number: int) -> _Request:
        """As an engine would have computed it: in every place other bytes than before, and than in other layers."""
        for layer, pages in enumerate(self._engine.pages):
            pages[: self._half] += np.uint8(layer % 255 + 1)
        welcome = self._engine.joined.welcome
        tokens = self._random.integers(0, _TOKEN_IDS, self._report.facts.tokens).tolist()
        algorithm = make_algorithm(welcome.hash_algorithm)
        digests = tuple(chunk_digests(algorithm, self._engine.root, tokens, welcome.chunk_size))
        return _Request(number, f"request-{number}", digests, self._blocks(0), self._blocks(self._half))

    def _blocks(self, first: int) -> tuple[tuple[int, ...], ...]:
        ids = (first + self._random.permutation(self._half)).tolist()
        per_chunk = self._half // self._report.facts.num_chunks
        return tuple(tuple(ids[start : start + per_chunk]) for start in range(0, self._half, per_chunk))

    def _serve(self, request: _Request, move_s: float | None) -> None:
        """`move_s` None: to warm up, not measured."""
        self._engine.pages[:, self._half :] = _POISON
        before = self._checksums(request.sources)
        stored, store_s = self._store(request)
        self._steps.reached(STORED)
        promise, _ = self._look_up(request)
        loaded, retrieve_s = self._load(request, promise)
        self._end(request, promise)
        num_chunks = len(promise.chunks) if loaded.is_ok else 0
        if stored.outcome is not StoreOutcome.STORED or num_chunks < len(request.digests):
            self._note_shortage(request, stored, promise, loaded)
        elif move_s is not None:
            self._report.move_s.append(move_s)
            self._report.store_s.append(store_s)
            self._report.retrieve_s.append(retrieve_s)
        self._compare_bytes(request, num_chunks)
        self._compare_checksums(before, request.targets[:num_chunks])

    def _store(self, request: _Request) -> tuple[StoreResult, float]:
        worker = self._engine.worker
        begun_s = time.perf_counter()
        worker.submit_store(StoreJob(request.number, self._engine.root, "", request.digests, request.sources))
        result = _poll(lambda: worker.take_finished()[0])
        took_s = time.perf_counter() - begun_s
        if result.outcome is StoreOutcome.FAILED:
            raise ServerUnavailableError(f"{request.name} could not be stored: the server is gone, or refused it")
        return result, took_s

    def _look_up(self, request: _Request) -> tuple[Promise, float]:
        """What is held of the request, locked, and how long the answer took."""
        deadline_s = time.perf_counter() + _PATIENCE_S
        while time.perf_counter() < deadline_s:
            begun_s = time.perf_counter()
            promise = None
            while promise is None:
                promise = self._engine.lookups.lookup(request.name, "", request.digests, _SLICE_S)
            if promise.boot_id:
                return promise, time.perf_counter() - begun_s
            time.sleep(_SLICE_S)  # no connection, or none yet
        raise ServerUnavailableError(f"{self._engine.config.url} does not answer lookups any more")

    def _load(self, request: _Request, promise: Promise) -> tuple[LoadResult, float]:
        worker = self._engine.worker
        chunks = tuple(LoadChunk(places, 0, ids) for places, ids in zip(promise.chunks, request.targets, strict=False))
        begun_s = time.perf_counter()
        worker.submit_load(LoadJob(request.name, promise.pool_id, chunks))
        result = _poll(lambda: worker.take_finished()[1])
        return result, time.perf_counter() - begun_s

    def _end(self, request: _Request, promise: Promise) -> None:
        self._engine.lookups.release(request.name, promise, 0)
        self._engine.lookups.end(request.name, promise.boot_id)

    def _note_shortage(self, request: _Request, stored: StoreResult, promise: Promise, loaded: LoadResult) -> None:
        text = f"{request.name}: {len(stored.stored)} of {len(request.digests)} chunks stored ({stored.outcome}), "
        text += f"{len(promise.chunks)} found"
        self._report.problems.append(text if loaded.is_ok else f"{text}, the retrieve failed: {loaded.error}")

    def _compare_bytes(self, request: _Request, num_chunks: int) -> None:
        sources, targets = _flat(request.sources[:num_chunks]), _flat(request.targets[:num_chunks])
        if not sources:
            return
        report = self._report
        for number, pages in enumerate(self._engine.pages):
            differs = pages[sources] != pages[targets]
            num_wrong = int(np.count_nonzero(differs))
            if num_wrong and not report.first_wrong:
                place = int(np.flatnonzero(differs.any(axis=1))[0])
                report.first_wrong = f"{request.name}, layer {number}, block {targets[place]}"
            report.num_bytes_wrong += num_wrong
            report.num_bytes_checked += differs.size

    def _checksums(self, blocks: Sequence[Sequence[int]]) -> list[str]:
        return self._check.checksums(_flat(blocks)) if self._check is not None else []

    def _compare_checksums(self, before: list[str], targets: Sequence[Sequence[int]]) -> None:
        after = self._checksums(targets)
        if self._report.num_digests is not None:
            self._report.num_digests += len(after)
        self._report.num_digests_different += sum(one != other for one, other in zip(before, after, strict=False))


def facts_of(engine: SyntheticEngine, num_tokens: int, welcome: m.Welcome) -> RunFacts:
    shape = engine.config.shape
    return RunFacts(
        engine.config.url, welcome.server_version, engine.config.model_name, engine.instance_id, shape.num_layers,
        shape.num_kv_heads, shape.head_size, shape.dtype, engine.config.block_size, welcome.chunk_size, num_tokens,
        num_tokens * shape.bytes_per_token,
    )  # fmt: skip


def _poll(take: Callable[[], list[_Result]]) -> _Result:
    """The one result; a transfer always ends with one, within its deadline."""
    while not (found := take()):
        time.sleep(_POLL_S)
    return found[0]


def _flat(chunks: Sequence[Sequence[int]]) -> list[int]:
    return [block_id for ids in chunks for block_id in ids]
