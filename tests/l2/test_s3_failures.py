"""The S3 adapter when things go wrong: keys, buckets, servers that die, objects that others touch; and in the large."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lmcache.errors import BackendError, BreakerOpenError, CorruptObjectError
from lmcache.l2.base import AdapterContext, Source, StoreStatus
from lmcache.l2.s3.adapter import S3L2Adapter
from lmcache.storage.breaker import BreakerConfig, BreakerState
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier import Tier, TierConfig
from lmcache.telemetry.metrics import Counter, MetricRegistry
from lmcache.testing.l2_backend import make_data, make_key
from lmcache.testing.l2_s3 import MotoBackend, s3_config
from lmcache.testing.ports import free_port
from lmcache.testing.s3_servers import MotoServer, RcloneServer
from lmcache.testing.waiting import wait_until

MakeAdapter = Callable[..., S3L2Adapter]


@pytest.fixture
def make_adapter() -> Iterator[MakeAdapter]:
    made: list[S3L2Adapter] = []

    def make(server: MotoServer | RcloneServer, prefix: str = "", **settings: object) -> S3L2Adapter:
        made.append(S3L2Adapter(s3_config(server, prefix, **settings), AdapterContext("s3")))
        return made[-1]

    yield make
    for adapter in made:
        adapter.close()


@pytest.fixture
def backend(moto: MotoServer) -> Iterator[MotoBackend]:
    backend = MotoBackend(moto)
    yield backend
    backend.close()


def _store(adapter: S3L2Adapter, number: int, data: bytes) -> StoreStatus:
    return adapter.store(make_key(number), Source(memoryview(data)))


def _is_done(call: Callable[[], object]) -> bool:
    """Whether the server answered it."""
    try:
        call()
    except BackendError:
        return False
    return True


def test_wrong_keys(rclone: RcloneServer, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(rclone, aws_secret_access_key="another")
    with pytest.raises(BackendError, match=r"denied \(403 SignatureDoesNotMatch\): check the keys") as caught:
        adapter.open()
    assert "another" not in str(caught.value)
    for call in (
        lambda: adapter.lookup([make_key(1)]),
        lambda: adapter.lookup([make_key(1), make_key(2)]),
        lambda: _store(adapter, 1, b"x"),
        lambda: adapter.load_whole(make_key(1)),
        lambda: adapter.list_l2_keys(None, 10, None),
    ):
        with pytest.raises(BackendError, match="denied"):
            call()
    assert adapter.report_status()["connection_failures"] >= 6
    adapter.index.check_integrity()


def test_a_bucket_that_does_not_exist(moto: MotoServer, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(moto, s3_endpoint="s3://no-such-bucket")
    with pytest.raises(BackendError, match="the bucket of s3://no-such-bucket does not exist"):
        adapter.open()
    with pytest.raises(BackendError, match="does not exist"):
        _store(adapter, 1, b"x")


def test_nobody_listens(make_adapter: MakeAdapter) -> None:
    server = MotoServer()
    server.port = free_port()
    with pytest.raises(BackendError, match="s3://lmcache-test failed: HTTP error") as caught:
        make_adapter(server).open()
    assert "\n" not in str(caught.value)


def test_a_large_object_travels_in_parts(moto: MotoServer, backend: MotoBackend, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(moto, backend.prefix, s3_part_size_mb=5)
    adapter.open()
    data = make_data(1, (11 << 20) + 3)
    assert _store(adapter, 1, data) is StoreStatus.STORED
    content = backend.content(make_key(1))
    assert content is not None
    assert content.endswith(data)
    assert adapter.usage().total_bytes_used == len(content)
    target = bytearray(len(data))
    adapter.load(make_key(1), memoryview(target))
    assert target == data
    assert moto.num_uploads() == 0
    # One that lost its end, which S3 itself never shows, but a gateway may.
    backend.replace(make_key(1), content[: 7 << 20])
    with pytest.raises(CorruptObjectError):
        adapter.load(make_key(1), memoryview(target))
    assert backend.num_objects() == 0


def test_more_objects_than_a_page_of_the_bucket_holds(
    moto: MotoServer, backend: MotoBackend, make_adapter: MakeAdapter
) -> None:
    num_objects = 1205
    content = b"not looked at"
    for number in range(num_objects):
        model_name, salt = ["org/a", "org/b"][number % 2], ["", "t"][number % 3 == 0]
        moto.put(backend.name(make_key(number, model_name, salt)), content)
    moto.put(f"{backend.prefix}/org/a@readme", content)
    moto.put(f"{backend.prefix}/readme.md", content)
    adapter = make_adapter(moto, backend.prefix)
    adapter.open()
    assert adapter.num_objects == num_objects
    usage = adapter.usage()
    assert usage.total_bytes_used == num_objects * len(content)
    assert usage.bytes_by_cache_salt["t"] == 402 * len(content)
    for model_name, count in ((None, num_objects), ("org/a", 603), ("org/b", 602)):
        for page_size in (400, 5000):
            keys, token = [], None
            while True:
                page = adapter.list_l2_keys(model_name, page_size, token)
                keys += [key for key, _ in page.entries]
                token = page.next_page_token
                if token is None:
                    break
                assert len(page.entries) == page_size
            assert len(keys) == len(set(keys)) == count
    deleted = adapter.delete([key for key, _ in adapter.list_l2_keys(None, 5000, None).entries])
    assert len(deleted.deleted) == num_objects
    assert len(moto.names(f"{backend.prefix}/")) == 2, "foreign objects stay"


def test_what_one_stored_the_other_finds(moto: MotoServer, backend: MotoBackend, make_adapter: MakeAdapter) -> None:
    first, second = make_adapter(moto, backend.prefix), make_adapter(moto, backend.prefix, max_capacity_gb=1e-5)
    first.open()
    second.open()
    keys = [make_key(number) for number in range(20)]
    for number in range(10):
        _store(first, number, make_data(number))
    assert second.might_hold(keys[0])
    assert second.lookup(keys) == [True] * 10 + [False] * 10
    assert bytes(second.load_whole(keys[3])) == make_data(3)
    assert len(second.list_l2_keys(None, 100, None).entries) == 10
    second.release(keys)
    # Its own capacity, 10 KiB, is its own view: to store, it evicts what it knows, whoever stored it.
    assert _store(second, 11, make_data(11)) is StoreStatus.STORED
    assert second.num_objects == 2
    assert backend.num_objects() == 2
    assert first.num_objects == 10, "it has not heard of it yet"
    assert sorted(key.chunk_hash for key, _ in first.list_l2_keys(None, 100, None).entries) == sorted(
        key.chunk_hash for key in second.keys_after(0, 100)[0]
    )


def test_what_is_not_persistent_leaves_alone_what_others_stored(
    moto: MotoServer, backend: MotoBackend, make_adapter: MakeAdapter
) -> None:
    other = make_adapter(moto, backend.prefix)
    other.open()
    _store(other, 1, make_data(1))
    passing = S3L2Adapter(s3_config(moto, backend.prefix), AdapterContext("s3", is_persistent=False))
    passing.open()
    assert passing.lookup([make_key(1)]) == [False]
    _store(passing, 2, make_data(2))
    passing.close()
    assert backend.content(make_key(1)) is not None
    assert backend.num_objects() == 1


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_server_that_dies_or_hangs_while_it_is_asked(make_adapter: MakeAdapter, is_killed: bool) -> None:
    server = MotoServer()
    adapter = make_adapter(server, s3_request_timeout_s=60 if is_killed else 0.3)
    server.start()
    try:
        # Also a server that is only short of a core may not answer in that time.
        wait_until(lambda: _is_done(adapter.open))
        for number in (1, 4):
            wait_until(lambda number=number: _is_done(lambda: _store(adapter, number, make_data(number))))
        server.pause()
        calls: list[Callable[[], object]] = [
            lambda: _store(adapter, 2, make_data(2, 1 << 20)),
            lambda: adapter.load(make_key(1), memoryview(bytearray(4096))),
            lambda: adapter.lookup([make_key(1), make_key(2), make_key(3)]),
            lambda: adapter.delete([make_key(4)]),
        ]
        failures: list[Exception] = []

        def fail(call: Callable[[], object]) -> None:
            try:
                call()
            except BackendError as error:
                failures.append(error)

        threads = [threading.Thread(target=fail, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        if is_killed:
            server.kill()
        for thread in threads:
            thread.join(60)
        assert len(failures) == len(calls)
        adapter.index.check_integrity()
        assert set(adapter.keys_after(0, 10)[0]) == {make_key(1), make_key(4)}
        assert adapter.index.num_leased == 0, "a lookup that fails leases nothing"
    finally:
        server.kill()


class _Waiter:
    """The answer of a tier's job."""

    def __init__(self) -> None:
        self._came = threading.Event()
        self.value: object = None

    def __call__(self, value: object) -> None:
        self.value = value
        self._came.set()

    def wait(self) -> object:
        assert self._came.wait(60), "no answer"
        return self.value


def _lookup(tier: Tier, numbers: list[int]) -> object:
    answer = _Waiter()
    tier.submit_lookup([make_key(number) for number in numbers], answer, time.monotonic() + 60)
    return answer.wait()


def _load(tier: Tier, number: int) -> object:
    answer = _Waiter()
    tier.submit_load(make_key(number), memoryview(bytearray(4096)), answer)
    return answer.wait()


def test_a_server_that_dies_is_left_alone_and_found_again(make_adapter: MakeAdapter) -> None:
    server = MotoServer()
    tier = Tier(
        0, make_adapter(server), StorageMetrics(MetricRegistry(), Counter("a", ""), Counter("b", "")),
        TierConfig(breaker=BreakerConfig(failures_max=2, pause_s=0.2, pause_s_max=0.2)),
    )  # fmt: skip
    server.start()
    try:
        tier.start()
        assert tier.wait_until_open(30)
        assert tier.call(lambda adapter: adapter.store(make_key(1), Source(memoryview(make_data(1))))) == "stored"
        server.kill()
        for _ in range(2):
            assert _lookup(tier, [2]) == [False], "a backend that fails is a miss"
        assert _load(tier, 1) is None
        assert tier.breaker.num_opened >= 1
        assert not tier.is_healthy
        assert tier.report()["connection_failures"] >= 2
        server.start()  # empty: it kept its objects in memory

        def is_closed_by_a_lookup() -> bool:
            _lookup(tier, [2])
            return tier.breaker.state is BreakerState.CLOSED

        wait_until(is_closed_by_a_lookup)
        assert tier.is_healthy
        assert tier.report()["connection_disabled"] is False
        assert _lookup(tier, [1]) == [True], "not known to be gone yet"
        assert _load(tier, 1) is None
        assert _lookup(tier, [1]) == [False]
    finally:
        tier.close(5.0)
        server.kill()


def test_an_open_breaker_is_an_error_for_operators(make_adapter: MakeAdapter) -> None:
    server = MotoServer()
    tier = Tier(
        0, make_adapter(server), StorageMetrics(MetricRegistry(), Counter("a", ""), Counter("b", "")),
        TierConfig(breaker=BreakerConfig(failures_max=1, pause_s=60.0)),
    )  # fmt: skip
    server.start()
    try:
        tier.start()
        assert tier.wait_until_open(30)
        server.kill()
        with pytest.raises(BackendError):
            tier.call(lambda adapter: adapter.list_l2_keys(None, 10, None))
        with pytest.raises(BreakerOpenError, match="left alone"):
            tier.call(lambda adapter: adapter.list_l2_keys(None, 10, None))
        assert tier.report()["connection_disabled"] is True
    finally:
        tier.close(5.0)
        server.kill()
