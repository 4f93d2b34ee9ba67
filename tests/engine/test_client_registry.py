"""The registry: instance ids, roots, missing ranks, ranks that hold equal bytes, coming and going."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmcache.core.hashing import make_algorithm
from lmcache.core.identity import make_root
from lmcache.core.keys import make_kv_rank
from lmcache.engine.registry import ClientRegistry
from lmcache.errors import DeclinedError, KeyFormatError, RequestRefusedError
from lmcache.protocol.messages import RegisterWorker
from tests.conftest import FakeClock
from tests.engine.conftest import CHUNK_SIZE, FACTS, Harness, layout

BLAKE3 = make_algorithm("blake3")


@pytest.fixture
def registry(clock: FakeClock) -> ClientRegistry:
    return ClientRegistry(BLAKE3, CHUNK_SIZE, clock)


def add_worker(registry: ClientRegistry, uid: int, rank: int = 0, world: int = 1, engine: str = "e", **other):
    return registry.add_worker(uid, b"p", engine, other.get("model", "m"), world, rank, other.get("layout", layout()))


def add_scheduler(registry: ClientRegistry, uid: int, world: int = 1, engine: str = "e", **other):
    return registry.add_scheduler(
        uid, b"p", engine, other.get("model", "m"), world, other.get("facts", FACTS), other.get("epoch", b""), False
    )


def test_instance_ids_are_the_smallest_free_ones_and_kept_by_who_comes_again(registry: ClientRegistry) -> None:
    ids = [add_worker(registry, uid, rank, 4)[0].instance_id for rank, uid in enumerate((10, 20, 30))]
    assert ids == [0, 1, 2]
    registry.remove(20)
    assert add_worker(registry, 30, 2, 4)[0].instance_id == 2
    assert add_worker(registry, 40, 3, 4)[0].instance_id == 1
    assert add_scheduler(registry, 50, 4)[0].instance_id == -1
    assert [worker.uid for worker in registry.workers()] == [10, 40, 30]


def test_the_root_appears_when_all_ranks_and_the_scheduler_are_there(registry: ClientRegistry) -> None:
    _, engine = add_worker(registry, 2, 1, 2)
    assert engine.missing_ranks == [0]
    assert not engine.root
    add_scheduler(registry, 9, 2)
    assert not engine.root
    add_worker(registry, 1, 0, 2)
    assert engine.root == make_root(BLAKE3, {"model": "org/m"}, [layout(), layout()], CHUNK_SIZE)
    assert registry.published_roots("m", 2) == [engine.root]
    assert registry.published_roots("m", 1) == []
    registry.remove(2)
    assert engine.missing_ranks == [1]
    assert not engine.root


def test_layouts_enter_the_root_in_rank_order_whoever_came_first(registry: ClientRegistry) -> None:
    add_scheduler(registry, 9, 2)
    add_worker(registry, 2, 1, 2, layout=layout(packing="b"))
    _, engine = add_worker(registry, 1, 0, 2, layout=layout(packing="a"))
    layouts = [layout(packing="a"), layout(packing="b")]
    assert engine.root == make_root(BLAKE3, {"model": "org/m"}, layouts, CHUNK_SIZE)


def test_equal_engines_share_a_root_and_an_epoch_parts_them(registry: ClientRegistry) -> None:
    for engine_id, uid in (("a", 1), ("b", 2)):
        add_worker(registry, uid, engine=engine_id)
        add_scheduler(registry, uid + 10, engine=engine_id)
    one, other = registry.engines["a"], registry.engines["b"]
    assert one.root == other.root
    old_root = registry.set_epoch(one, b"\x01")
    assert old_root == other.root != one.root
    assert registry.is_root_in_use(old_root)
    registry.set_epoch(other, b"\x02")
    assert not registry.is_root_in_use(old_root)


def test_mla_ranks_with_equal_bytes_have_one_source(registry: ClientRegistry) -> None:
    for rank, packing in enumerate(("a", "a", "b", "a")):
        _, engine = add_worker(registry, rank + 1, rank, 4, layout=layout(is_mla=True, packing=packing))
    assert engine.source_ranks() == [0, 2]
    assert engine.rank_groups() == [(make_kv_rank(4, 0, 4, 0), 0), (make_kv_rank(4, 2, 4, 2), 0)]


def test_ranks_that_are_not_mla_are_all_sources(registry: ClientRegistry) -> None:
    for rank in range(3):
        _, engine = add_worker(registry, rank + 1, rank, 3)
    assert engine.source_ranks() == [0, 1, 2]


def test_the_engine_goes_with_its_last_client(registry: ClientRegistry) -> None:
    add_worker(registry, 1)
    add_scheduler(registry, 9)
    registry.remove(1)
    assert "e" in registry.engines
    registry.remove(9)
    assert not registry.engines
    assert not registry.clients
    assert registry.remove(9) is None


def test_a_successor_of_a_rank_is_not_removed_with_its_predecessor(registry: ClientRegistry) -> None:
    add_scheduler(registry, 9)
    add_worker(registry, 1)
    _, engine = add_worker(registry, 2)
    registry.remove(1)
    assert engine.workers[0].uid == 2
    assert engine.root


def test_a_client_that_changes_its_role_leaves_the_old_one(registry: ClientRegistry) -> None:
    add_worker(registry, 1)
    client, engine = add_scheduler(registry, 1)
    assert registry.engine_of(client) is engine
    assert not engine.workers
    client, engine = add_worker(registry, 1)
    assert registry.engine_of(client) is engine
    assert engine.scheduler_uid is None


def test_a_worker_that_changes_its_rank_leaves_the_old_one_missing(registry: ClientRegistry) -> None:
    add_worker(registry, 1, 0, 2)
    client, engine = add_worker(registry, 1, 1, 2)
    assert engine.missing_ranks == [0]
    assert client.rank == 1


def test_an_engine_id_taken_over_by_another_model_leaves_no_client_without_engine(registry: ClientRegistry) -> None:
    old, _ = add_worker(registry, 1)
    add_worker(registry, 2, model="other")
    registry.remove(2)
    assert registry.engine_of(old) is not None


@pytest.mark.parametrize("facts", [b"", b"[]", b"{}", b"{", b'{"f": NaN}', b'{"f": Infinity}', b"\xff"])
def test_facts_that_are_no_object_are_declined_and_leave_no_trace(registry: ClientRegistry, facts: bytes) -> None:
    with pytest.raises(DeclinedError, match="model facts"):
        add_scheduler(registry, 1, facts=facts)
    assert not registry.clients
    assert not registry.engines


@pytest.mark.parametrize(("rank", "world"), [(1, 1), (-1, 1), (0, 0), (0, 256)])
def test_ranks_outside_their_world_are_refused_and_leave_no_trace(
    registry: ClientRegistry, rank: int, world: int
) -> None:
    with pytest.raises((DeclinedError, KeyFormatError)):
        add_worker(registry, 1, rank, world)
    assert not registry.clients
    assert not registry.engines


def test_a_block_size_that_does_not_divide_the_chunk_is_declined_with_both_numbers(harness: Harness) -> None:
    with pytest.raises(DeclinedError, match=r"chunk size 16 .* block size 5"):
        harness.worker(kv_layout=replace(layout(), block_size=5))


@pytest.mark.parametrize("blob", [b"", b"{}", b"[]", b'{"block_size": "x"}'])
def test_a_layout_that_cannot_be_read_is_refused(harness: Harness, blob: bytes) -> None:
    message = RegisterWorker("e", "m", 1, 0, blob, harness.engine.pool.files.nonce)
    with pytest.raises(RequestRefusedError, match="cannot be read"):
        harness.engine.management.register_worker(harness.engine.pool, 1, b"p", message, CHUNK_SIZE)


@pytest.mark.parametrize("change", [{"block_size": 0}, {"block_size": -16}, {"groups": ()}])
def test_a_layout_without_bytes_is_refused(harness: Harness, change: dict[str, object]) -> None:
    with pytest.raises(RequestRefusedError, match="without tokens or pages without bytes"):
        harness.worker(kv_layout=replace(layout(), **change))
    with pytest.raises(RequestRefusedError, match="pages without bytes"):
        harness.worker(kv_layout=layout(page_bytes=0))


def test_a_client_that_cannot_read_the_pool_folder_is_refused_with_the_remedy(harness: Harness) -> None:
    with pytest.raises(RequestRefusedError, match="--ipc=host") as refused:
        harness.worker(nonce=b"guess")
    assert refused.value.code == "forbidden"
    assert not harness.engine.registry.clients
