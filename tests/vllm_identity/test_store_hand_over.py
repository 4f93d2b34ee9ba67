"""What a step saves: announced before its forward pass, submitted after one that ended well."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from lmcache.integration.mp.jobs import StoreJob

JOBS = [StoreJob(number, b"r" * 32, "", (bytes([number]) * 32,), ((number,),)) for number in (1, 2)]


@dataclass
class Transfers:
    """What the copying threads are told."""

    told: list[tuple[str, int]] = field(default_factory=list)

    def announce_store(self, job: StoreJob) -> None:
        self.told.append(("announce", job.job_id))

    def withdraw_store(self) -> None:
        self.told.append(("withdraw", 0))

    def submit_store(self, job: StoreJob) -> None:
        self.told.append(("submit", job.job_id))


@pytest.fixture
def transfers() -> Transfers:
    return Transfers()


@pytest.fixture
def adapter(transfers: Transfers) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what vLLM's own imports have to say
        from lmcache.integration.vllm.mp_config import MPConnectorConfig
        from lmcache.integration.vllm.parallel import ParallelStrategy
        from lmcache.integration.vllm.worker_adapter import LMCacheMPWorkerAdapter
    made = LMCacheMPWorkerAdapter(MPConnectorConfig(), "org/m", "e", ParallelStrategy(1, 0, 1, False))
    made._transfer = transfers
    return made


def step(*stores: StoreJob) -> Any:
    from lmcache.integration.vllm.metadata import MPConnectorMetadata

    return MPConnectorMetadata(stores=list(stores))


@contextmanager
def forward_pass(adapter: Any, *stores: StoreJob) -> Iterator[None]:
    """As vLLM does: the connector is called on the way out, whatever happened inside."""
    try:
        yield
    finally:
        adapter.submit_stores(step(*stores))


def test_the_first_store_of_a_step_is_announced_before_all_are_submitted(adapter: Any, transfers: Transfers) -> None:
    meta = step(*JOBS)
    adapter.announce_stores(meta)
    adapter.submit_stores(meta)
    assert transfers.told == [("announce", 1), ("submit", 1), ("submit", 2)]


def test_a_step_without_stores_withdraws_what_an_earlier_one_announced(adapter: Any, transfers: Transfers) -> None:
    adapter.announce_stores(step())
    assert transfers.told == [("withdraw", 0)]


def test_pages_of_a_forward_pass_that_raised_are_not_saved(adapter: Any, transfers: Transfers) -> None:
    with pytest.raises(ZeroDivisionError), forward_pass(adapter, *JOBS):
        raise ZeroDivisionError
    assert not transfers.told
    report = adapter.take_report()
    assert report is not None
    assert report.stores == {1: 1, 2: 1}, "their blocks are let go"


def test_stores_after_a_handled_error_are_submitted(adapter: Any, transfers: Transfers) -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    adapter.submit_stores(step(JOBS[0]))
    assert transfers.told == [("submit", 1)]
