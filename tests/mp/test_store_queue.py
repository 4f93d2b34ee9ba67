"""Announced and submitted stores: one result for each submit, none for an announcement, whatever comes between."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from lmcache.integration.mp.jobs import StoreJob
from lmcache.integration.mp.store_queue import RunState, StoreQueue, StoreRun

ROOT = b"r" * 32


def job(number: int) -> StoreJob:
    return StoreJob(number, ROOT, "", (bytes([number % 256]) * 32,), ((number,),))


def test_an_announced_store_is_taken_before_it_is_ready() -> None:
    queue, announced = StoreQueue(), job(1)
    queue.announce(announced, 1.0)
    run = queue.take()
    assert run is not None
    assert (run.state, queue.has_work) == (RunState.PREPARING, False)
    queue.submit(announced, 2.0)
    assert (run.state, run.deadline_s) == (RunState.READY, 2.0)
    assert queue.take() is None
    assert queue.close(run)


def test_an_equal_job_is_not_the_announced_one() -> None:
    """Only the very job that was announced may use its places: its blocks may be others by now."""
    queue = StoreQueue()
    queue.announce(job(1), 1.0)
    prepared = queue.take()
    queue.submit(job(1), 1.0)
    assert prepared is not None
    assert prepared.state is RunState.VOID
    assert not queue.close(prepared)
    assert queue.take() is not None


def test_what_is_ready_goes_before_what_is_announced() -> None:
    queue, ready = StoreQueue(), job(1)
    queue.submit(ready, 1.0)
    queue.announce(job(2), 1.0)
    first, second = queue.take(), queue.take()
    assert first is not None
    assert second is not None
    assert (first.job, first.state) == (ready, RunState.READY)
    assert second.state is RunState.PREPARING


def test_a_preparation_that_failed_is_not_tried_again_but_its_job_is() -> None:
    queue, announced = StoreQueue(), job(1)
    queue.announce(announced, 1.0)
    run = queue.take()
    assert run is not None
    assert not queue.close(run)
    assert not queue.has_work
    queue.submit(announced, 1.0)
    again = queue.take()
    assert again is not None
    assert again is not run
    assert queue.close(again)


class QueueMachine(RuleBasedStateMachine):
    """An engine that announces, submits and forgets; threads that take and close in any order."""

    jobs: Bundle[StoreJob] = Bundle("jobs")
    runs: Bundle[StoreRun] = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.queue = StoreQueue()
        self.num_made = 0
        self.submitted: list[int] = []
        self.reported: list[int] = []
        self.open: list[StoreRun] = []

    @rule(target=jobs)
    def announce(self) -> StoreJob:
        self.num_made += 1
        made = job(self.num_made)
        self.queue.announce(made, 0.0)
        return made

    @rule(announced=jobs, is_new=st.booleans())
    def submit(self, announced: StoreJob, is_new: bool) -> None:
        if is_new or announced.job_id in self.submitted:
            self.num_made += 1
            announced = job(self.num_made)
        self.queue.submit(announced, 0.0)
        self.submitted.append(announced.job_id)

    @rule()
    def withdraw(self) -> None:
        self.queue.withdraw()

    @rule(target=runs)
    def take(self) -> StoreRun | object:
        had_work = self.queue.has_work
        run = self.queue.take()
        assert (run is not None) == had_work
        if run is None:
            return multiple()
        assert run.state in (RunState.PREPARING, RunState.READY)
        self.open.append(run)
        return run

    @rule(run=runs)
    def close(self, run: StoreRun) -> None:
        if run in self.open:
            self.open.remove(run)
            if self.queue.close(run):
                self.reported.append(run.job.job_id)

    @invariant()
    def at_most_one_is_prepared(self) -> None:
        assert sum(run.state is RunState.PREPARING for run in self.open) <= 1

    def teardown(self) -> None:
        self.queue.withdraw()
        while self.open or self.queue.has_work:
            for run in list(self.open):
                self.close(run)
            self.take()
        assert sorted(self.reported) == sorted(self.submitted)


TestQueueMachine = QueueMachine.TestCase
