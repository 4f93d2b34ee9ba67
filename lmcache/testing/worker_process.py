"""An engine without a model in a process of its own: a scheduler, and the transfers of each rank.

Everything but the model is the product's: membership, lookups, transfers, client locks. What
it loads it checks byte by byte.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time

import msgspec

from lmcache.integration.mp.jobs import LoadChunk, LoadJob, StoreJob, StoreResult
from lmcache.integration.mp.lookups import LookupClient, Promise
from lmcache.integration.mp.membership import Membership, MembershipConfig
from lmcache.protocol import messages as m
from lmcache.testing import control as c
from lmcache.testing.child import serve_orders
from lmcache.testing.faults import FaultObserver
from lmcache.testing.packed_promise import pack_promise, unpack_promise
from lmcache.testing.paged_memory import BLOCKS_PER_CHUNK, digest_of
from lmcache.testing.traffic import TrafficSource
from lmcache.testing.worker_rank import MODEL, WorkerProcessConfig, WorkerRank

_POLL_S = 0.0003
# Counted in polls, not in seconds, so that time spent stopped does not count.
_POLLS_MAX = 60_000


class EngineProcess:
    """Requests one at a time; loads and stores of one request at once."""

    def __init__(self, config: WorkerProcessConfig, channel: c.Channel) -> None:
        self._config = config
        self._channel = channel
        self.faults = FaultObserver(lambda step: channel.send(c.FaultReached(step)))
        self._ranks = [WorkerRank(config, rank, self.faults) for rank in range(len(config.uids) - 1)]
        connection = MembershipConfig(config.url, timeout_s=config.rpc_timeout_s, heartbeat_s=config.heartbeat_s)
        self._scheduler = Membership(connection, config.uids[0], "scheduler", self._registration)
        self._lookups = LookupClient(self._scheduler, config.rpc_timeout_s, prefetch_wait_s=config.prefetch_wait_s)
        self._boot_ids: dict[str, int] = {}
        self._job_ids = iter(range(1, 1 << 62))
        self._traffic: TrafficSource | None = None
        self._names_of_job: dict[int, dict[bytes, str]] = {}
        self._announced: StoreJob | None = None
        for rank in self._ranks:
            rank.start()
        self._scheduler.start()

    def _registration(self, welcome: m.Welcome, nonce: bytes) -> m.RegisterScheduler:
        facts = json.dumps({"model": MODEL}).encode()
        return m.RegisterScheduler(self._config.engine_id, MODEL, len(self._ranks), facts, nonce)

    @property
    def is_busy(self) -> bool:
        return self._traffic is not None

    def turn(self) -> None:
        if self._traffic is not None:
            self._traffic.run_request(self)

    def obey(self, order: c.Message) -> c.Answer:
        match order:
            case c.Arm(fault):
                self.faults.arm(fault)
            case c.Traffic(seed, num_prompts, chunks_per_prompt):
                rng = random.Random(seed)
                self._traffic = TrafficSource(self._channel, rng, num_prompts, chunks_per_prompt)
            case c.Pause():
                self._traffic = None
                self._withdraw()
            case c.WaitJoined(timeout_s):
                return c.Done(int(self._wait_joined(timeout_s)))
            case c.Announce(names):
                self.announce(names)
            case c.Store(names):
                return self.store(names)
            case c.Look(request_id, names):
                promise = self.look(request_id, names)
                return c.Looked(len(promise.chunks), pack_promise(promise))
            case c.Keep(request_id, promise_blob, num_chunks):
                promise = self.keep(request_id, unpack_promise(promise_blob), num_chunks)
                return c.Looked(len(promise.chunks), pack_promise(promise))
            case c.Load(promise_blob):
                return self.load(unpack_promise(promise_blob))
            case c.End(request_id):
                self.end(request_id)
            case c.Verify(names):
                return c.Verified([name for name in names if not self._is_held(name)])
            case c.AbortMany(num_requests, names):
                return c.Done(self._abort_many(num_requests, names))
            case _:
                raise ValueError(f"an engine does not take {order}")
        return c.Done()

    def stop(self, keep: bool) -> None:
        self._lookups.close()
        for rank in self._ranks:
            rank.stop()
        self._scheduler.stop()

    def _wait_joined(self, timeout_s: float) -> bool:
        """Whether ranks and scheduler are registered with the server of now, and a lookup is answered."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            boot_id = self.look("warm-up", ["nobody stores this"]).boot_id
            members = [self._scheduler, *(rank.membership for rank in self._ranks)]
            currents = [member.current for member in members]
            if boot_id and all(joined is not None and joined.boot_id == boot_id for joined in currents):
                self.end("warm-up")
                return True
            time.sleep(0.01)
        return False

    def _is_held(self, name: str) -> bool:
        promise = self.look("verify", [name])
        is_ok = bool(promise.chunks) and self.load(promise).is_ok
        self.end("verify")
        return is_ok

    # The scheduler's side

    def look(self, request_id: str, names: list[str]) -> Promise:
        digests = [digest_of(name) for name in names]
        promise = self._lookups.lookup(request_id, "", digests, 0.0)
        self.faults.reached("lookup.asked")
        while promise is None:
            promise = self._lookups.lookup(request_id, "", digests, 0.1)
        self._boot_ids[request_id] = promise.boot_id
        self.faults.reached("lookup.answered")
        return promise

    def keep(self, request_id: str, promise: Promise, num_chunks: int) -> Promise:
        """Take less than was offered."""
        self._lookups.release(request_id, promise, num_chunks)
        return dataclasses.replace(promise, chunks=promise.chunks[:num_chunks])

    def end(self, request_id: str) -> None:
        self._lookups.end(request_id, self._boot_ids.pop(request_id, 0))

    def _abort_many(self, num_requests: int, names: list[str]) -> int:
        """Ended, cancelled before the answer is read, and forgotten, in turn; returns how many had locks."""
        digests, num_locking = [digest_of(name) for name in names], 0
        for number in range(num_requests):
            request_id = f"aborted-{number}"
            if number % 3 == 1:
                self._lookups.lookup(request_id, "", digests, 0.0)
                self._lookups.cancel(request_id)
                continue
            num_locking += bool(self.look(request_id, names).chunks)
            if number % 3 == 0:
                self.end(request_id)
        return num_locking

    # The ranks' side

    def store(self, names: list[str]) -> c.StoreReport:
        job_id = self.submit_store(names)
        results = [self._wait_store(rank, job_id) for rank in self._ranks]
        return c.StoreReport([result.outcome for result in results], [len(result.stored) for result in results])

    def announce(self, names: list[str]) -> None:
        """These chunks are about to be computed; until they are, their blocks hold nothing of them."""
        job = self._announced = self._make_job(names)
        for rank in self._ranks:
            for block_ids in job.block_ids:
                rank.memory.poison(block_ids)
            rank.transfers.announce_store(job)

    def submit_store(self, names: list[str]) -> int:
        """Compute these chunks on every rank and hand them over, as announced if they were."""
        job, self._announced = self._announced, None
        if job is None or job.digests != tuple(digest_of(name) for name in names):
            job = self._make_job(names)
        for rank in self._ranks:
            for digest, block_ids in zip(job.digests, job.block_ids, strict=True):
                rank.memory.fill(digest, block_ids)
            rank.transfers.submit_store(job)
        self._names_of_job = {job.job_id: dict(zip(job.digests, names, strict=True))}
        return job.job_id

    def _withdraw(self) -> None:
        """As an engine's next step does: what was announced does not come."""
        self._announced = None
        for rank in self._ranks:
            rank.transfers.withdraw_store()

    def _make_job(self, names: list[str]) -> StoreJob:
        joined = self._scheduler.last
        root = joined.registered.root if joined is not None else b""
        first = self._config.chunks_max
        blocks = tuple(_blocks(first + index) for index in range(len(names)))
        return StoreJob(next(self._job_ids), root, "", tuple(digest_of(name) for name in names), blocks)

    def _wait_store(self, rank: WorkerRank, job_id: int) -> StoreResult:
        for _ in range(_POLLS_MAX):
            for result in rank.transfers.take_finished()[0]:
                if result.job_id != job_id:
                    raise ValueError(f"rank {rank.rank} reported store {result.job_id}, which nobody submitted")
                self._tell_stored(rank, result)
                return result
            time.sleep(_POLL_S)
        raise TimeoutError(f"rank {rank.rank} never reported store {job_id}")

    def _tell_stored(self, rank: WorkerRank, result: StoreResult) -> None:
        names = self._names_of_job[result.job_id]
        if result.stored:
            self._channel.send(c.Stored(rank.rank, [names[digest] for digest in result.stored]))

    def load(self, promise: Promise) -> c.LoadReport:
        """Load on every rank. Bytes are checked where a rank reports success."""
        chunks = tuple(LoadChunk(ranks, 0, _blocks(index)) for index, ranks in enumerate(promise.chunks))
        request_id = f"load-{next(self._job_ids)}"
        for rank in self._ranks:
            for chunk in chunks:
                rank.memory.poison(chunk.block_ids)
            rank.transfers.submit_load(LoadJob(request_id, promise.pool_id, chunks))
        errors, num_wrong = [], 0
        for rank in self._ranks:
            error = self._wait_load(rank, request_id)
            errors.append(error)
            num_wrong += 0 if error else self._count_wrong(rank, chunks)
        return c.LoadReport(not any(errors), "; ".join(filter(None, errors)), num_wrong)

    def _wait_load(self, rank: WorkerRank, request_id: str) -> str:
        for _ in range(_POLLS_MAX):
            for result in rank.transfers.take_finished()[1]:
                if result.request_id == request_id:
                    return "" if result.is_ok else result.error or "it failed without a reason"
            time.sleep(_POLL_S)
        raise TimeoutError(f"rank {rank.rank} never reported load {request_id}")

    def _count_wrong(self, rank: WorkerRank, chunks: tuple[LoadChunk, ...]) -> int:
        total = 0
        for chunk in chunks:
            digest = chunk.ranks[rank.rank].digest
            num_wrong = rank.memory.count_wrong(digest, chunk.block_ids)
            if num_wrong:
                self._channel.send(c.WrongBytes(rank.rank, digest.hex(), num_wrong))
            total += num_wrong
        return total


def _blocks(chunk_number: int) -> tuple[int, ...]:
    """The engine's blocks for its n-th chunk, out of order as a real block pool hands them out."""
    first = chunk_number * BLOCKS_PER_CHUNK
    return tuple(reversed(range(first, first + BLOCKS_PER_CHUNK)))


def main(channel: c.Channel, config_blob: bytes) -> None:
    """Live until told to quit, or until the test is gone."""
    config = msgspec.msgpack.decode(config_blob, type=WorkerProcessConfig)
    serve_orders(channel, EngineProcess(config, channel))
