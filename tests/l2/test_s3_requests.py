"""What the S3 adapter asks of its service: again, later and later, when it is busy; in parts; many keys at once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise

import pytest

from lmcache.errors import BackendError
from lmcache.l2.base import AdapterContext, Source, StoreStatus
from lmcache.l2.s3.adapter import S3L2Adapter
from lmcache.l2.s3.client import make_store
from lmcache.testing.l2_backend import make_data, make_key
from lmcache.testing.l2_s3 import MotoBackend, s3_config
from lmcache.testing.s3_servers import MotoServer
from tests.l2.s3_front import Asked, S3Front

MIB = 1 << 20
NUM_RETRIES = 3
FIRST_WAIT_S = 0.1


@pytest.fixture
def backend(moto: MotoServer) -> Iterator[MotoBackend]:
    backend = MotoBackend(moto)
    yield backend
    backend.close()


@pytest.fixture
def front(moto: MotoServer) -> Iterator[S3Front]:
    with S3Front(moto.port) as front:
        yield front


@pytest.fixture
def adapter(moto: MotoServer, backend: MotoBackend, front: S3Front) -> Iterator[S3L2Adapter]:
    config = s3_config(moto, backend.prefix, s3_endpoint_url=front.url, s3_part_size_mb=5)
    adapter = S3L2Adapter(config, AdapterContext("s3"))
    adapter.open()
    front.take()
    yield adapter
    adapter.close()


def store(adapter: S3L2Adapter, number: int, num_bytes: int = 4096) -> None:
    status = adapter.store(make_key(number), Source(memoryview(make_data(number, num_bytes))))
    assert status is StoreStatus.STORED


def waits(asked: list[Asked]) -> list[float]:
    """Seconds from each refusal to the next try."""
    return [after.came_s - before.refused_s for before, after in pairwise(asked)]


@pytest.mark.parametrize("num_refusals", [1, NUM_RETRIES])
def test_a_service_that_is_busy_is_asked_again_after_a_while(
    adapter: S3L2Adapter, front: S3Front, num_refusals: int
) -> None:
    front.num_refusals = num_refusals
    store(adapter, 1)
    stored = front.take()
    front.num_refusals = num_refusals
    assert bytes(adapter.load_whole(make_key(1))) == make_data(1)
    loaded = front.take()
    assert [asked.action for asked in stored] == ["PUT"] * (num_refusals + 1)
    assert [asked.action for asked in loaded] == ["GET"] * (num_refusals + 1)
    assert min(waits(stored) + waits(loaded)) >= FIRST_WAIT_S * 0.95
    assert adapter.report_status()["connection_failures"] == 0


def test_a_service_that_stays_busy_is_given_up(adapter: S3L2Adapter, front: S3Front) -> None:
    front.num_refusals = 1000
    with pytest.raises(BackendError, match="503 SlowDown"):
        store(adapter, 1)
    assert front.take_actions() == ["PUT"] * (NUM_RETRIES + 1)
    assert adapter.report_status()["connection_failures"] == 1
    front.num_refusals = 0
    store(adapter, 1)


def test_the_waits_grow_up_to_a_bound(moto: MotoServer) -> None:
    """obstore draws each wait at random, so what it is told is looked at: the bound of the draw doubles."""
    given = make_store(s3_config(moto)).retry_config
    assert given is not None
    backoff = given["backoff"]
    assert given["max_retries"] == NUM_RETRIES
    assert backoff["init_backoff"] == timedelta(seconds=FIRST_WAIT_S)
    assert backoff["base"] == 2
    assert backoff["max_backoff"] >= NUM_RETRIES * 2 * backoff["init_backoff"]
    assert backoff["max_backoff"] < given["retry_timeout"]


def test_a_small_object_is_one_request(adapter: S3L2Adapter, front: S3Front) -> None:
    store(adapter, 1)
    store(adapter, 2, 4 * MIB)
    assert front.take_actions() == ["PUT", "PUT"]


def test_a_large_object_travels_in_parts(adapter: S3L2Adapter, front: S3Front, backend: MotoBackend) -> None:
    store(adapter, 1, 11 * MIB)
    first, *parts, last = front.take_actions()
    assert (first, last) == ("POST uploads", "POST uploadId")
    assert parts == ["PUT partNumber uploadId"] * 3
    content = backend.content(make_key(1))
    assert content is not None
    assert content.endswith(make_data(1, 11 * MIB))


def test_many_objects_are_deleted_by_one_request(adapter: S3L2Adapter, front: S3Front, backend: MotoBackend) -> None:
    keys = [make_key(number) for number in range(40)]
    for number in range(40):
        store(adapter, number, 100)
    front.take()
    assert len(adapter.delete(keys[:30]).deleted) == 30
    assert front.take_actions() == ["POST delete"]
    assert backend.num_objects() == 10


def test_many_objects_are_evicted_by_one_request(adapter: S3L2Adapter, front: S3Front, backend: MotoBackend) -> None:
    for number in range(20):
        store(adapter, number, 100)
    front.take()
    assert adapter.evict(1 << 30, 15)[0] == 15
    assert front.take_actions() == ["POST delete"]
    assert backend.num_objects() == 5
