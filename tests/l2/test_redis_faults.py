"""The Redis adapter when the server is full, forgets, dies, hangs, loads, refuses, or is not what was expected."""

from __future__ import annotations

import mmap
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable

import pytest
import trustme

from lmcache.errors import BackendError, ConfigError, CorruptObjectError, ObjectMissingError
from lmcache.l2.base import AdapterContext, Source, StoreStatus
from lmcache.l2.redis.adapter import RedisL2Adapter
from lmcache.l2.redis.config import RedisConfig
from lmcache.l2.redis.names import Names
from lmcache.storage.breaker import BreakerConfig, BreakerState
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier import Tier, TierConfig
from lmcache.telemetry.metrics import Counter, MetricRegistry
from lmcache.testing.l2_backend import Recorder, make_data, make_key
from lmcache.testing.redis_server import SOCKET_TIMEOUT_S, RedisCluster, RedisServer, wait_until
from tests.l2.redis_servers import need_redis_server
from tests.l2.tls_front import TLSFront

MIB = 1 << 20
SECRET = "hunter2-and-more"


@pytest.fixture
def start_server():
    need_redis_server()
    servers: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        servers.append(RedisServer(*options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def make_adapter():
    adapters: list[RedisL2Adapter] = []

    def make(server: RedisServer, is_persistent: bool = True, **settings: object) -> RedisL2Adapter:
        config = RedisConfig(
            **{"host": "127.0.0.1", "port": server.port, "socket_timeout_s": SOCKET_TIMEOUT_S, **settings}
        )
        adapters.append(RedisL2Adapter(config, AdapterContext("redis", is_persistent=is_persistent)))
        return adapters[-1]

    yield make
    for adapter in adapters:
        adapter.close()


def store(adapter, key, data: bytes) -> StoreStatus:
    return adapter.store(key, Source(memoryview(data)))


def load(adapter, key, num_bytes: int) -> bytes:
    target = bytearray(num_bytes)
    adapter.load(key, memoryview(target))
    return bytes(target)


def check(adapter, key) -> bool:
    found = adapter.lookup([key])[0]
    if found:
        adapter.release([key])
    return found


def test_a_full_server_that_may_not_evict(start_server, make_adapter):
    server = start_server("--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
    adapter = make_adapter(server)
    adapter.open()
    statuses = [store(adapter, make_key(number), make_data(number, MIB)) for number in range(12)]
    num_stored = statuses.index(StoreStatus.NO_ROOM)
    assert 0 < num_stored < 9
    assert set(statuses[num_stored:]) == {StoreStatus.NO_ROOM}
    assert all(load(adapter, make_key(number), MIB) == make_data(number, MIB) for number in range(num_stored))
    assert adapter.num_objects == num_stored
    adapter.delete([make_key(number) for number in range(num_stored)])
    wait_until(lambda: store(adapter, make_key(20), make_data(20, MIB)) is StoreStatus.STORED, "it stays full")
    adapter.index.check_integrity()


def test_what_the_server_evicted_is_noticed(start_server, make_adapter):
    server = start_server("--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru")
    adapter = make_adapter(server)
    told = Recorder()
    adapter.add_listener(told)
    adapter.open()
    keys = [make_key(number) for number in range(20)]
    for number, key in enumerate(keys):
        assert store(adapter, key, make_data(number, MIB)) is StoreStatus.STORED
    assert adapter.num_objects == 20
    found = adapter.lookup(keys)
    assert 0 < found.count(True) < 9
    assert adapter.num_objects == found.count(True)
    assert {key for key, _ in told.deleted} == {key for key, is_held in zip(keys, found, strict=True) if not is_held}
    for number, (key, is_held) in enumerate(zip(keys, found, strict=True)):
        if is_held:
            assert load(adapter, key, MIB) == make_data(number, MIB)
        else:
            with pytest.raises(ObjectMissingError):
                load(adapter, key, MIB)
    adapter.index.check_integrity()


def test_an_object_whose_time_is_up_is_a_miss(start_server, make_adapter):
    server = start_server()
    adapter = make_adapter(server, ttl_seconds=3600.5)
    adapter.open()
    key = make_key(1)
    store(adapter, key, make_data(1))
    with server.client() as client:
        (name,) = client.keys()
        assert 3_500_000 < client.pttl(name) <= 3_600_500
        client.pexpire(name, 1)
        wait_until(lambda: not client.exists(name), "it does not expire")
    assert not check(adapter, key)
    assert adapter.usage().total_bytes_used == 0
    assert store(adapter, key, make_data(2)) is StoreStatus.STORED


def test_what_vanished_leaves_the_index_though_nobody_asks_for_it(start_server, make_adapter):
    server = start_server()
    adapter = make_adapter(server)
    adapter.open()
    for number in range(100):
        store(adapter, make_key(number), make_data(number, 100))
    with server.client() as client:
        client.flushall()
    for number in range(1000, 1020):
        assert not check(adapter, make_key(number))
    assert adapter.num_objects == 0
    assert adapter.usage().total_bytes_used == 0


def test_foreign_things_among_the_keys(start_server, make_adapter):
    server = start_server()
    name = Names("lmcache").name(make_key(1))
    with server.client() as client:
        client.rpush(name, "a", "list")
        client.set("lmcache@of nobody", "x")
        client.set("other", "x")
        client.set(Names("lmcache").name(make_key(2)), b"no header")
    adapter = make_adapter(server)
    adapter.open()
    assert not check(adapter, make_key(1))
    assert [key for key, _ in adapter.list_l2_keys(None, 10, None).entries] == [make_key(2)]
    with pytest.raises(CorruptObjectError):
        load(adapter, make_key(1), 4096)
    with pytest.raises(CorruptObjectError):
        load(adapter, make_key(2), 4096)
    assert adapter.num_objects == 0
    assert store(adapter, make_key(1), make_data(1)) is StoreStatus.STORED, "a string replaces whatever was there"
    assert load(adapter, make_key(1), 4096) == make_data(1)
    with server.client() as client:
        assert client.exists("other", "lmcache@of nobody") == 2


def test_many_objects_are_found_again(start_server, make_adapter):
    server = start_server()
    first = make_adapter(server)
    first.open()
    for number in range(6_000):
        store(first, make_key(number, cache_salt=["", "tenant"][number % 2]), b"kv" * (1 + number % 3))
    second = make_adapter(server)
    second.open()
    assert second.num_objects == 6_000
    assert second.usage() == first.usage()


def test_a_listing_shows_what_another_server_stored(start_server, make_adapter):
    server = start_server()
    mine, other = make_adapter(server), make_adapter(server)
    mine.open()
    other.open()
    store(other, make_key(1), make_data(1))
    assert [key for key, _ in mine.list_l2_keys(None, 10, None).entries] == [make_key(1)]


def test_an_object_that_no_value_can_hold(start_server, make_adapter):
    adapter = make_adapter(start_server())
    adapter.open()
    with mmap.mmap(-1, 512 * MIB) as memory, memoryview(memory) as data:
        assert adapter.store(make_key(1), Source(data)) is StoreStatus.NO_ROOM
    assert store(adapter, make_key(1), make_data(1)) is StoreStatus.STORED


@pytest.mark.parametrize("password", [None, "wrong-" + SECRET])
def test_a_wrong_password_is_told_and_not_shown(start_server, make_adapter, password):
    server = start_server("--requirepass", SECRET)
    adapter = make_adapter(server, password=password)
    with pytest.raises(BackendError, match="refuses the user name or the password") as caught:
        adapter.open()
    assert SECRET not in str(caught.value)
    with server.client(password=SECRET) as client:
        assert client.info("stats")["total_connections_received"] < 20, "it is not tried again at once"
    good = make_adapter(server, password=SECRET)
    good.open()
    assert store(good, make_key(1), make_data(1)) is StoreStatus.STORED


def test_a_user_who_may_not_write(start_server, make_adapter):
    server = start_server()
    with server.client() as client:
        client.acl_setuser("reader", enabled=True, passwords=["+" + SECRET], keys=["*"], categories=["+@read"])
    with pytest.raises(BackendError, match="does not allow this user what is needed"):
        make_adapter(server, username="reader", password=SECRET).open()


def test_a_replica_is_named_as_one(start_server, make_adapter):
    master = start_server()
    replica = start_server("--replicaof", "127.0.0.1", str(master.port))
    with replica.client() as client:
        wait_until(lambda: client.info("replication")["master_link_status"] == "up", "it does not replicate")
    with pytest.raises(BackendError, match="is a replica, which takes no writes: name its master"):
        make_adapter(replica).open()


def test_a_master_that_became_a_replica(start_server, make_adapter):
    server = start_server()
    adapter = make_adapter(server)
    adapter.open()
    store(adapter, make_key(1), make_data(1))
    with server.client() as client:
        client.replicaof("127.0.0.1", 1)
        with pytest.raises(BackendError, match="is a replica"):
            store(adapter, make_key(2), make_data(2))
        assert load(adapter, make_key(1), 4096) == make_data(1)
        client.replicaof("NO", "ONE")
    assert store(adapter, make_key(2), make_data(2)) is StoreStatus.STORED


def test_a_server_that_is_still_loading(start_server, make_adapter):
    server = start_server()
    with server.client() as client:
        value = os.urandom(2 * MIB)
        for number in range(30):
            client.set(f"other-{number}", value)
        client.save()
    server.kill()
    # It answers between two keys of that size: twice a second, and for longer than the next few lines take.
    server.options = ("--key-load-delay", "500000")
    server.start(is_loading=True)
    adapter = make_adapter(server)
    with pytest.raises(BackendError, match="still loading its data"):
        adapter.open()
    server.kill()
    server.options = ()
    server.start()
    wait_until(lambda: opens(adapter), "it never opens")
    assert store(adapter, make_key(1), make_data(1)) is StoreStatus.STORED


def opens(adapter) -> bool:
    return is_done(adapter.open)


def is_done(call: Callable[[], object]) -> bool:
    """Whether the server answered it."""
    try:
        call()
    except BackendError:
        return False
    return True


def test_a_node_of_a_cluster_is_told_from_a_server(make_adapter):
    need_redis_server()
    cluster = RedisCluster()
    try:
        with pytest.raises(ConfigError, match="is a node of a cluster: name its addresses in nodes"):
            make_adapter(cluster.nodes[0]).open()
        adapter = make_adapter(cluster.nodes[0], host=None, port=None, nodes=["127.0.0.1:1", cluster.addresses[1]])
        adapter.open()
        keys = [make_key(number) for number in range(20)]
        for number, key in enumerate(keys):
            assert store(adapter, key, make_data(number)) is StoreStatus.STORED
        sizes = []
        for node in cluster.nodes:
            with node.client() as client:
                sizes.append(client.dbsize())
        assert sum(sizes) == 20
        assert all(sizes)
        cluster.nodes[0].kill()
        with pytest.raises(BackendError, match="the Redis cluster of"):
            adapter.lookup(keys)
        assert adapter.index.num_leased == 0
    finally:
        cluster.close()


def test_a_server_without_cluster_is_told_from_a_cluster(start_server, make_adapter):
    server = start_server()
    with pytest.raises(BackendError, match="the Redis cluster of"):
        make_adapter(server, host=None, port=None, nodes=[f"127.0.0.1:{server.port}"]).open()


def test_nobody_is_there(start_server, make_adapter, monkeypatch):
    server = start_server()
    server.kill()
    pauses_s: list[float] = []
    monkeypatch.setattr("redis.retry.sleep", pauses_s.append)
    with pytest.raises(BackendError, match=f"Redis at 127.0.0.1:{server.port} failed"):
        make_adapter(server).open()
    assert pauses_s == [], "the pauses are the tier's"


def test_a_server_that_hangs(start_server, make_adapter):
    server = start_server()
    adapter = make_adapter(server, socket_timeout_s=0.2)
    # Also a server that is only short of a core may not answer in that time.
    wait_until(lambda: opens(adapter), "it never opens")
    wait_until(lambda: is_done(lambda: store(adapter, make_key(1), make_data(1))), "nothing is stored")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(BackendError, match="did not answer in time"):
            adapter.lookup([make_key(1)])
        with pytest.raises(BackendError, match="did not answer in time"):
            load(adapter, make_key(1), 4096)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert adapter.index.num_leased == 0
    loaded: list[bytes] = []
    wait_until(lambda: is_done(lambda: loaded.append(load(adapter, make_key(1), 4096))), "nothing is loaded")
    assert loaded == [make_data(1)], "no answer of before is taken for one of now"


def test_a_server_killed_and_started_again_under_load(start_server, make_adapter):
    server = start_server()
    adapter = make_adapter(server)
    config = TierConfig(breaker=BreakerConfig(failures_max=3, pause_s=0.05, pause_s_max=0.1))
    tier = Tier(0, adapter, StorageMetrics(MetricRegistry(), Counter("a", ""), Counter("b", "")), config)
    tier.start()
    assert tier.wait_until_open(30)
    load_maker = LoadMaker(tier)
    try:
        wait_until(lambda: load_maker.num_hits > 20, "no hits before")
        server.kill()
        wait_until(lambda: tier.breaker.state is not BreakerState.CLOSED, "the breaker does not open")
        server.start()
        hits_before = load_maker.num_hits
        wait_until(lambda: load_maker.num_hits > hits_before + 20, "no hits after")
        assert tier.breaker.state is BreakerState.CLOSED
    finally:
        load_maker.stop()
        tier.close(5.0)
    assert load_maker.num_wrong == 0


class LoadMaker:
    """Stores and loads a few objects through a tier, without end, from a few threads."""

    def __init__(self, tier: Tier) -> None:
        self.num_hits = 0
        self.num_wrong = 0
        self._tier = tier
        self._is_stopping = False
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(3)]
        for thread in self._threads:
            thread.start()

    def _work(self, number: int) -> None:
        key, data = make_key(number), make_data(number, 50_000)
        while not self._is_stopping:
            self._ask(lambda done: self._tier.submit_store(key, Source(memoryview(data)), done))
            found = self._ask(lambda done: self._tier.submit_lookup([key], done, time.monotonic() + 60))
            if found != [True]:
                continue
            target = bytearray(len(data))
            if self._ask(lambda done, target=target: self._tier.submit_load(key, memoryview(target), done)):
                self.num_hits += 1
                self.num_wrong += target != data

    def _ask(self, submit) -> object:
        answers: list[object] = []
        came = threading.Event()
        submit(lambda answer: (answers.append(answer), came.set()))
        assert came.wait(2 * SOCKET_TIMEOUT_S), "no answer came"
        return answers[0]

    def stop(self) -> None:
        self._is_stopping = True
        for thread in self._threads:
            thread.join()


def test_over_tls(start_server, make_adapter, tmp_path):
    server = start_server()
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    with TLSFront(server.port, context) as front:
        adapter = make_adapter(server, host="localhost", port=front.port, tls=True, tls_ca_file=str(ca_file))
        adapter.open()
        store(adapter, make_key(1), make_data(1, MIB))
        assert load(adapter, make_key(1), MIB) == make_data(1, MIB)
        adapter.close()
        stranger = make_adapter(server, host="localhost", port=front.port, tls=True)
        with pytest.raises(BackendError, match="certificate"):
            stranger.open()
