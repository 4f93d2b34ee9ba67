"""GET /kvcache/check and POST /cache/checksums: MD5s equal to those the test computes from what the pages must hold."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from lmcache.protocol import messages as m
from lmcache.testing.nursery import Nursery
from lmcache.testing.paged_memory import CHUNK_SIZE
from lmcache.testing.processes import EngineHandle
from lmcache.testing.waiting import wait_until
from tests.http.engines import NUM_BLOCKS, EngineSite, ExpectedPages, HandmadeWorker, engine_site, handmade_layout
from tests.http.no_engine import ask
from tests.server.running import RunningServer, running_server

NAMES = ["one", "two", "three"]
CHECK, CHECKSUMS = "/kvcache/check", "/cache/checksums"
# A server that waits so long for its workers.
_WAITING = """
import functools, sys
from lmcache.cli.main import main
from lmcache.engine import cache_server

cache_server.ChecksumModule = functools.partial(cache_server.ChecksumModule, patience_s=PATIENCE_S)
sys.exit(main(["server", *sys.argv[1:]]))
"""
# Longer than any test, and not long.
_PATIENT, _HASTY = (["-c", _WAITING.replace("PATIENCE_S", seconds)] for seconds in ("600.0", "0.5"))


@pytest.fixture(scope="module")
def site(nursery: Nursery, make_pool_folder: Callable[[], pathlib.Path]) -> Iterator[EngineSite]:
    with engine_site(make_pool_folder(), nursery, command=_PATIENT) as found:
        yield found


@pytest.fixture(scope="module")
def engine(site: EngineSite) -> EngineHandle:
    return site.start_engine()


@pytest.fixture
def pages(engine: EngineHandle) -> ExpectedPages:
    """The engine computed three chunks and read them back into other blocks."""
    return computed_by(engine)


def computed_by(engine: EngineHandle) -> ExpectedPages:
    engine.store(NAMES)
    assert engine.read(NAMES) == 3
    expected = ExpectedPages()
    expected.stored(NAMES)
    expected.loaded(NAMES)
    return expected


def check(site: EngineSite | RunningServer, **query: Any) -> httpx.Response:
    return site.http.get(CHECK, params=query)


def error_of(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert list(body) == ["error"], body
    return answer.status_code, body["error"]


# The documents' samples, on the first instance of a fresh server


def test_documented_sample(site: EngineSite, pages: ExpectedPages) -> None:
    answer = site.http.get(f"{CHECK}?block_ids=0,1,2,3&chunk_size=2")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {
        "status": "success",
        "chunk_size": 2,
        "num_chunks": 2,
        "chunk_checksums": pages.checksums([0, 1, 2, 3], 2),
        "layerwise": False,
        "block_id_ranges": "[0,3]",
    }
    assert list(answer.json()) == [
        "status", "chunk_size", "num_chunks", "chunk_checksums", "layerwise", "block_id_ranges",
    ]  # fmt: skip


def test_documented_sample_layer_by_layer(site: EngineSite, pages: ExpectedPages) -> None:
    answer = site.http.get(f"{CHECK}?block_ids=0,1,2,3&chunk_size=2&layerwise=true").json()
    assert answer["chunk_checksums"] == pages.checksums_by_layer([0, 1, 2, 3], 2)
    assert list(answer["chunk_checksums"]) == ["layer_0", "layer_1", "layer_2", "layer_3"]
    assert (answer["layerwise"], answer["num_chunks"]) == (True, 2)


def test_documented_mixed_list(site: EngineSite, pages: ExpectedPages) -> None:
    answer = check(site, block_ids="0,[2,5],8", chunk_size=2).json()
    assert answer["chunk_checksums"] == pages.checksums([0, 2, 3, 4, 5, 8], 2)
    assert (answer["num_chunks"], answer["block_id_ranges"]) == (3, "0,[2,5],8")


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 5, 12, 13, 10**30])
@pytest.mark.parametrize("layerwise", [False, True])
def test_any_chunk_size(site: EngineSite, pages: ExpectedPages, chunk_size: int, layerwise: bool) -> None:
    """The last chunk may be short; one larger than the list is one chunk."""
    blocks = list(range(12))
    answer = check(site, block_ids="[0,11]", chunk_size=chunk_size, layerwise=layerwise).json()
    compute = pages.checksums_by_layer if layerwise else pages.checksums
    assert answer["chunk_checksums"] == compute(blocks, min(chunk_size, 12))
    assert answer["chunk_size"] == chunk_size
    assert answer["num_chunks"] == -(-12 // chunk_size)


@pytest.mark.parametrize(
    ("block_ids", "expected", "compact"),
    [
        ("3,3,3", [3, 3, 3], "3,3,3"),
        ("11,0", [11, 0], "11,0"),
        (" [ 4 , 6 ] , 4", [4, 5, 6, 4], "[4,6],4"),
        ("63", [63], "63"),
        ("0,1,3,4,5,7", [0, 1, 3, 4, 5, 7], "0,1,[3,5],7"),
        ("2,1,0", [2, 1, 0], "2,1,0"),
        (",5,,6,", [5, 6], "5,6"),
    ],
)
def test_order_and_duplicates_count(
    site: EngineSite, pages: ExpectedPages, block_ids: str, expected: list[int], compact: str
) -> None:
    answer = check(site, block_ids=block_ids, chunk_size=2).json()
    assert answer["chunk_checksums"] == pages.checksums(expected, 2)
    assert answer["block_id_ranges"] == compact


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_list_of_empty_items_has_no_chunks(site: EngineSite, pages: ExpectedPages, layerwise: bool) -> None:
    answer = check(site, block_ids=",", chunk_size=2, layerwise=layerwise).json()
    nothing = {f"layer_{index}": [] for index in range(4)}
    assert (answer["num_chunks"], answer["block_id_ranges"]) == (0, "")
    assert answer["chunk_checksums"] == (nothing if layerwise else [])


def test_a_store_and_a_retrieve_give_the_same_checksums(site: EngineSite, engine: EngineHandle) -> None:
    """As a bench does it: the blocks that were computed before the store, the loaded ones after the retrieve."""
    names, expected = ["round trip 1", "round trip 2"], ExpectedPages()
    engine.store(names)
    sources = ",".join(map(str, expected.stored(names)))
    before = check(site, block_ids=sources, chunk_size=4).json()["chunk_checksums"]
    assert engine.read(names) == 2
    targets = ",".join(map(str, expected.loaded(names)))
    after = check(site, block_ids=targets, chunk_size=4).json()["chunk_checksums"]
    assert before == after
    assert len(set(after)) == 2


def test_later_name_answers_the_same(site: EngineSite, pages: ExpectedPages) -> None:
    body = {"block_ids": [0, 2, 3, 4, 5, 8], "chunk_size": 2}
    assert site.http.post(CHECKSUMS, json=body).text == check(site, block_ids="0,[2,5],8", chunk_size=2).text
    body |= {"instance_id": 0, "layerwise": True}
    answer = site.http.post(CHECKSUMS, json=body)
    assert answer.json()["chunk_checksums"] == pages.checksums_by_layer([0, 2, 3, 4, 5, 8], 2)


def test_each_rank_answers_for_itself(site: EngineSite, engine: EngineHandle) -> None:
    others = site.instance_ids()
    pair = site.start_engine("pair", num_ranks=2)
    pair.store(NAMES)
    contexts = site.http.get("/status").json()["cache_context_meta"]
    instance_ids = [number for number in site.instance_ids() if number not in others]
    assert sorted(contexts[str(number)]["rank"] for number in instance_ids) == [0, 1]
    for instance_id in instance_ids:
        expected = ExpectedPages(contexts[str(instance_id)]["rank"])
        blocks = expected.stored(NAMES)
        answer = check(site, block_ids=",".join(map(str, blocks)), chunk_size=4, instance_id=instance_id)
        assert answer.json()["chunk_checksums"] == expected.checksums(blocks, 4)
    pair.close()


# Refusals, in the documented order of the checks


_NO_BLOCKS = [{}, {"block_ids": ""}]
_MALFORMED = [{"block_ids": text} for text in ("x", "[5,2]", "[1", "1.0", "[[1,2]]", "1-2", "[-2,1]", "9" * 5000)]
_BAD_SIZE = [{}, {"chunk_size": 0}, {"chunk_size": -1}, {"chunk_size": -(10**30)}]


@pytest.mark.parametrize("query", _NO_BLOCKS)
@pytest.mark.parametrize("size", [*_BAD_SIZE, {"chunk_size": 1}])
def test_block_ids_are_required(
    site: EngineSite, engine: EngineHandle, query: dict[str, str], size: dict[str, int]
) -> None:
    assert error_of(check(site, **query, **size)) == (400, "block_ids is required")


@pytest.mark.parametrize("query", _MALFORMED)
@pytest.mark.parametrize("size", [{}, {"chunk_size": 0}, {"chunk_size": 1}])
def test_malformed_block_ids(
    site: EngineSite, engine: EngineHandle, query: dict[str, str], size: dict[str, int]
) -> None:
    assert error_of(check(site, **query, **size)) == (400, "Invalid block_ids format")


@pytest.mark.parametrize("size", _BAD_SIZE)
def test_chunk_size_must_be_positive(site: EngineSite, engine: EngineHandle, size: dict[str, int]) -> None:
    assert error_of(check(site, block_ids="0", **size)) == (400, "chunk_size must be positive")
    assert error_of(check(site, block_ids="99999", **size)) == (400, "chunk_size must be positive")


@pytest.mark.parametrize("instance_id", [7, -1, 10**30])
@pytest.mark.parametrize(
    "query", [{}, {"block_ids": "x"}, {"block_ids": "0", "chunk_size": 0}, {"block_ids": "0", "chunk_size": 1}]
)
def test_unknown_instance(site: EngineSite, engine: EngineHandle, instance_id: int, query: dict[str, Any]) -> None:
    answer = check(site, instance_id=instance_id, **query)
    assert error_of(answer) == (404, f"instance_id {instance_id} not registered")


@pytest.mark.parametrize(
    ("block_ids", "reason"),
    [
        (f"{NUM_BLOCKS}", f"block id {NUM_BLOCKS} is outside the cache of {NUM_BLOCKS} blocks"),
        ("-1", f"block id -1 is outside the cache of {NUM_BLOCKS} blocks"),
        (f"0,[3,{10**12}]", f"block id {10**12} is outside the cache of {NUM_BLOCKS} blocks"),
        (f"[0,{'9' * 4000}]", f"is outside the cache of {NUM_BLOCKS} blocks"),
        (",".join([f"[0,{NUM_BLOCKS - 1}]"] * 5), f"too many block ids in a single request (limit={4 * NUM_BLOCKS})"),
    ],
)
def test_blocks_that_the_cache_does_not_have(
    site: EngineSite, engine: EngineHandle, block_ids: str, reason: str
) -> None:
    code, error = error_of(check(site, block_ids=block_ids, chunk_size=2))
    assert code == 400
    assert reason in error
    assert len(error) < 200


@pytest.mark.parametrize(
    "query",
    [{"chunk_size": "x"}, {"chunk_size": "1.5"}, {"chunk_size": ""}, {"instance_id": "zero"}, {"layerwise": "perhaps"}],
)
def test_wrong_types_are_the_frameworks(site: EngineSite, engine: EngineHandle, query: dict[str, str]) -> None:
    answer = check(site, **{"block_ids": "0", "chunk_size": "1", **query})
    assert answer.status_code == 422
    (item,) = answer.json()["detail"]
    assert item["loc"] == ["query", *query]


@pytest.mark.parametrize(
    ("body", "code", "detail"),
    [
        ({"chunk_size": 1}, 400, "block_ids is required"),
        ({"block_ids": [], "chunk_size": 1}, 400, "block_ids is required"),
        ({"block_ids": [0]}, 400, "chunk_size must be positive"),
        ({"block_ids": [0], "chunk_size": -3}, 400, "chunk_size must be positive"),
        ({"block_ids": [-1], "chunk_size": 1}, 400, f"block id -1 is outside the cache of {NUM_BLOCKS} blocks"),
        ({"block_ids": [0] * 257, "chunk_size": 1}, 400, "too many block ids in a single request (limit=256)"),
        ({"block_ids": [0], "chunk_size": 1, "instance_id": 9}, 404, "instance_id 9 not registered"),
    ],
)
def test_refusals_under_the_later_name(
    site: EngineSite, engine: EngineHandle, body: dict[str, Any], code: int, detail: str
) -> None:
    answer = site.http.post(CHECKSUMS, json=body)
    assert (answer.status_code, answer.json()) == (code, {"detail": detail})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff", b'{"block_ids":"0","chunk_size":1}', b'{"block_ids":[0.0],"chunk_size":1}',
        b'{"block_ids":[true],"chunk_size":1}', b'{"block_ids":[0],"chunk_size":NaN}', b'{"block_ids":[null]}',
        b'{"block_ids":[0],"chunk_size":1e999}', b'{"block_ids":[0],"layerwise":1}', b'{"block_ids":[[0]]}',
        b'{"block_ids":[' + b"9" * 5000 + b'],"chunk_size":1}',
    ],
)  # fmt: skip
def test_malformed_bodies(site: EngineSite, engine: EngineHandle, content: bytes) -> None:
    answer = site.http.post(CHECKSUMS, content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "detail" in answer.json()


def test_without_an_engine() -> None:
    """Before anything else is looked at, but for types."""
    for query in ("", "?block_ids=x", "?block_ids=0&chunk_size=1&instance_id=5"):
        assert error_of(ask("GET", CHECK + query)) == (503, "engine not initialized")
    answer = ask("POST", CHECKSUMS, json={})
    assert (answer.status_code, answer.json()) == (503, {"detail": "engine not initialized"})
    assert ask("GET", f"{CHECK}?chunk_size=x").status_code == 422


def test_an_engine_without_contexts() -> None:
    class EngineOfAnotherKind:
        """It exposes no map of KV contexts."""

    for query in ("", "?block_ids=0&chunk_size=1"):
        answer = ask("GET", CHECK + query, EngineOfAnotherKind())
        assert error_of(answer) == (501, "checksum not supported for this engine type")
    answer = ask("POST", CHECKSUMS, EngineOfAnotherKind(), json={})
    assert (answer.status_code, answer.json()) == (501, {"detail": "checksum not supported for this engine type"})


# Workers that are registered by hand


@pytest.fixture
def handmade(site: EngineSite, engine: EngineHandle, request: pytest.FixtureRequest) -> Iterator[HandmadeWorker]:
    worker = HandmadeWorker(site.server, getattr(request, "param", handmade_layout()))
    yield worker
    worker.close()


@pytest.mark.parametrize("handmade", [handmade_layout(num_blocks=0)], indirect=True)
def test_a_context_without_tensors(site: EngineSite, handmade: HandmadeWorker) -> None:
    answer = check(site, block_ids="0", chunk_size=1, instance_id=handmade.instance_id)
    assert error_of(answer) == (404, "kv_caches empty")
    answer = check(site, block_ids="0", chunk_size=0, instance_id=handmade.instance_id)
    assert error_of(answer) == (400, "chunk_size must be positive")


@pytest.mark.parametrize("handmade", [handmade_layout(shape=(3, 5))], indirect=True)
def test_a_format_without_a_block_axis(site: EngineSite, handmade: HandmadeWorker) -> None:
    answer = check(site, block_ids="10000", chunk_size=1, instance_id=handmade.instance_id)
    assert error_of(answer) == (501, "checksum not supported for GPU KV format NL_X_NB_NH_BS_HS")


class Asking(threading.Thread):
    """A request whose answer is looked at later."""

    def __init__(self, site: EngineSite | RunningServer, **query: Any) -> None:
        super().__init__()
        self._site, self._query = site, query
        self.start()

    def run(self) -> None:
        self.answer = check(self._site, **self._query)

    def result(self) -> httpx.Response:
        self.join()
        return self.answer


@pytest.mark.parametrize(
    ("rows", "error", "code", "text"),
    [
        ([], "the pages are gone", 503, "the instance could not answer: the pages are gone"),
        ([["a" * 32]], "", 503, "answered 1 rows of checksums, not 2"),
        ([["a" * 32], []], "", 503, "answered 2 rows of checksums, not 2"),
        ([], "", 404, "kv_caches empty"),
    ],
)
def test_a_worker_that_answers_something_else(
    site: EngineSite, handmade: HandmadeWorker, rows: list[list[str]], error: str, code: int, text: str
) -> None:
    asking = Asking(site, block_ids="0", chunk_size=1, instance_id=handmade.instance_id, layerwise=True)
    query = handmade.take_query()
    assert (query.block_ids, query.chunk_size, query.layerwise) == ([0], 1, True)
    handmade.say(m.ChecksumResult(query.query_id + 1, [["b" * 32]] * 2))
    handmade.say(m.ChecksumResult(query.query_id, rows, error))
    code_found, text_found = error_of(asking.result())
    assert code_found == code
    assert text in text_found


def test_only_the_one_who_was_asked_is_heard(site: EngineSite, handmade: HandmadeWorker) -> None:
    liar = HandmadeWorker(site.server, handmade_layout())
    asking = Asking(site, block_ids="0", chunk_size=1, instance_id=handmade.instance_id)
    query = handmade.take_query()
    liar.say(m.ChecksumResult(query.query_id, [["f" * 32]]))
    handmade.say(m.ChecksumResult(query.query_id, [["a" * 32]]))
    assert asking.result().json()["chunk_checksums"] == ["a" * 32]
    liar.close()


@pytest.mark.parametrize("handmade", [handmade_layout(num_blocks=40_000, num_layers=4)], indirect=True)
def test_a_long_answer_comes_in_pieces_that_fit_a_frame(site: EngineSite, handmade: HandmadeWorker) -> None:
    asking = Asking(site, block_ids="[0,39999]", chunk_size=1, instance_id=handmade.instance_id, layerwise=True)
    sizes = []
    while sum(sizes) < 40_000:
        query = handmade.take_query()
        sizes.append(len(query.block_ids))
        rows = [[f"{layer:x}{block_id:031x}" for block_id in query.block_ids] for layer in range(4)]
        handmade.say(m.ChecksumResult(query.query_id, rows))
    assert len(sizes) > 1
    found = asking.result().json()
    assert found["num_chunks"] == 40_000
    assert found["chunk_checksums"]["layer_3"] == [f"3{block_id:031x}" for block_id in range(40_000)]


@pytest.mark.parametrize("handmade", [handmade_layout(num_blocks=60_000, num_layers=4)], indirect=True)
def test_more_checksums_than_one_answer_holds(site: EngineSite, handmade: HandmadeWorker) -> None:
    query = {"block_ids": "[0,59999]", "instance_id": handmade.instance_id, "layerwise": True}
    error = "too many checksums in a single request (limit=200000): raise chunk_size"
    assert error_of(check(site, **query, chunk_size=1)) == (400, error)


def answer_query(worker: HandmadeWorker) -> None:
    worker.say(m.ChecksumResult(worker.take_query().query_id, [["a" * 32]]))


def test_questions_do_not_gather_behind_a_worker_that_does_not_answer(
    make_pool_folder: Callable[[], pathlib.Path],
) -> None:
    """Nor do other endpoints, or other instances, wait for it."""
    flags = ("--chunk-size", str(CHUNK_SIZE))
    with running_server(make_pool_folder(), *flags, command=_PATIENT) as server:
        silent, other = (HandmadeWorker(server, handmade_layout()) for _ in range(2))
        query = {"block_ids": "0", "chunk_size": 1}
        asking = [Asking(server, **query, instance_id=silent.instance_id) for _ in range(30)]
        wait_until(lambda: sum(one.is_alive() for one in asking) == 4)
        assert server.http.get("/healthcheck").status_code == 200
        assert server.http.get("/status").status_code == 200
        asking_other = Asking(server, **query, instance_id=other.instance_id)
        answer_query(other)
        assert asking_other.result().status_code == 200
        assert sum(one.is_alive() for one in asking) == 4
        for _ in range(4):
            answer_query(silent)
        answers = [one.result() for one in asking]
        assert sum(answer.status_code == 200 for answer in answers) == 4
        refusal = (503, f"instance {silent.instance_id} has 4 checksum requests to answer already")
        assert {error_of(answer) for answer in answers if answer.status_code != 200} == {refusal}
        for worker in (silent, other):
            worker.close()


# Workers that are stopped, killed, gone


@pytest.fixture(scope="module")
def hasty(nursery: Nursery, make_pool_folder: Callable[[], pathlib.Path]) -> Iterator[EngineSite]:
    with engine_site(make_pool_folder(), nursery, command=_HASTY) as found:
        yield found


def checksums_of_block_0(site: EngineSite) -> object:
    """None where there was no time for it."""
    return check(site, block_ids="0", chunk_size=1).json().get("chunk_checksums")


def test_a_worker_that_does_not_answer_costs_a_time_out(hasty: EngineSite) -> None:
    """Stopped, it answers again later; killed, it is unknown in the end, and its number free."""
    unanswered, unknown = (503, "instance 0 did not answer within 0.5 s"), (404, "instance_id 0 not registered")
    engine = hasty.start_engine()
    pages = computed_by(engine)
    engine.stop()
    assert error_of(check(hasty, block_ids="0", chunk_size=1)) == unanswered
    engine.resume()
    wait_until(lambda: checksums_of_block_0(hasty) == pages.checksums([0], 1))
    engine.kill()
    assert error_of(check(hasty, block_ids="0", chunk_size=1)) in (unanswered, unknown)
    hasty.wait_until_alone([])
    assert error_of(check(hasty, block_ids="0", chunk_size=1)) == unknown
    hasty.start_engine("successor")
    assert hasty.instance_ids() == [0]
