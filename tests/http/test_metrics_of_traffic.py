"""The documented metrics on a real server with a tier that a real engine stores to and loads from: names, types and
labels as the documents have them, and counts of what happened."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from lmcache.testing.nursery import Nursery
from lmcache.testing.paged_memory import CHUNK_BYTES, CHUNK_SIZE
from lmcache.testing.processes import PATIENT_S, EngineHandle
from lmcache.testing.waiting import wait_until
from lmcache.testing.worker_rank import MODEL
from tests.http.engines import EngineSite, engine_site
from tests.http.scraping import Family, families, scrape

_C, _H, _G = "counter", "histogram", "gauge"
_SALT = ("cache_salt",)
_L2 = ("l2_name",)
_PER_TIER = ("l2_name", "adapter_index")
_TOKENS = ("model_name", "cache_salt")
# Name, type, unit and attributes as documented, of those that have a source here.
_DOCUMENTED = (
    ("l1_read", _C, "chunks", _SALT), ("l1_write", _C, "chunks", _SALT), ("l1_evicted", _C, "chunks", _SALT),
    ("l1_eviction_loop_ticks", _C, "", ()), ("l1_eviction_loop_triggered", _C, "", ()),
    ("l1_allocation_failure", _C, "chunks", ("during", "model_name")),
    ("l1_read_failure", _C, "chunks", ("during", "reason", "model_name")),
    ("l1_chunk_lifetime", _H, "s", ()), ("l1_chunk_idle_before_evict", _H, "s", ()),
    ("l1_chunk_reuse_gap", _H, "s", ()), ("l1_chunk_evict_reuse_gap", _H, "s", ()),
    ("l1_memory_usage_bytes", _G, "", ()), ("l1_usage_ratio", _G, "", ()),
    ("real_reuse_gap", _H, "s", _SALT), ("real_reuse_gap_objects", _H, "{chunks}", _SALT),
    ("l2_store_submitted", _C, "requests", ()), ("l2_store_submitted_objects", _C, "chunks", _SALT),
    ("l2_store_completed", _C, "requests", _L2), ("l2_store_completed_objects", _C, "chunks", _SALT),
    ("l2_prefetch_lookup", _C, "requests", ()), ("l2_prefetch_lookup_objects", _C, "chunks", _SALT),
    ("l2_prefetch_hit", _C, "chunks", ()), ("l2_prefetch_load_submitted", _C, "requests", ()),
    ("l2_prefetch_load_submitted_objects", _C, "chunks", _SALT), ("l2_prefetch_load_completed", _C, "chunks", _SALT),
    ("l2_load_completed", _C, "requests", _L2), ("l2_evicted_objects", _C, "chunks", _SALT),
    ("l2_prefetch_failure", _C, "chunks", ("reason", "model_name")),
    ("l2_store_throughput", _H, "GB/s", _L2), ("l2_load_throughput", _H, "GB/s", _L2),
    ("l2_usage_bytes", _G, "", _L2), ("num_inflight_l2_stores", _G, "", _PER_TIER),
    ("num_inflight_l2_loads", _G, "", _PER_TIER), ("inflight_load_memory_usage_bytes", _G, "", _PER_TIER),
    ("l2_adapters", _G, "", ("state",)),
    ("lookup_requested", _C, "tokens", _TOKENS), ("lookup_hit", _C, "tokens", _TOKENS),
    ("active_prefetch_jobs", _G, "", ()), ("num_chunks_loaded", _C, "", ("worker_id", "model_name", "cache_salt")),
    ("l0_l1_store_throughput", _H, "GB/s", ("engine_id", "device", "model_name")),
    ("l0_l1_load_throughput", _H, "GB/s", ("engine_id", "device", "model_name")),
    # Of the later release.
    ("lookups", _C, "requests", ()), ("lookup_hit_l1", _C, "tokens", _TOKENS), ("lookup_hit_l2", _C, "tokens", _TOKENS),
    ("num_submitted_stores", _C, "requests", ()), ("num_finished_stores", _C, "requests", ()),
)  # fmt: skip
_UNITS = {"s": "_seconds", "GB/s": "_GB_per_second", "{chunks}": "", "": ""}
_DEFAULT_BUCKETS = ("0.0", "5.0", "10.0", "25.0", "50.0", "75.0", "100.0", "250.0", "500.0", "750.0", "1000.0",
                    "2500.0", "5000.0", "7500.0", "10000.0", "+Inf")  # fmt: skip
_MOCK = '{"type": "mock", "max_size_gb": 1}'
_NAMES = ["one", "two", "three"]
_NUM = len(_NAMES)
_PROMPT_TOKENS = _NUM * CHUNK_SIZE
_P = "lmcache_mp_"


def on_prometheus(name: str, kind: str, unit: str) -> str:
    return _P + name + _UNITS.get(unit, f"_{unit}") + ("_total" if kind == _C else "")


@pytest.fixture(scope="module")
def site(nursery: Nursery, make_pool_folder: Callable[[], pathlib.Path]) -> Iterator[EngineSite]:
    flags = ("--l2-adapter", _MOCK, "--l2-prefetch-policy", "retain", "--metrics-sample-rate", "1")
    with engine_site(make_pool_folder(), nursery, *flags) as found:
        yield found


@pytest.fixture
def engine(site: EngineSite, nursery: Nursery) -> Iterator[EngineHandle]:
    """One that waits for a server short of a core, and so asks for everything once. Counts begin behind its start."""
    found = EngineHandle(nursery, "counted", site.server.zmq_url, patience_s=PATIENT_S, prefetch_wait_s=PATIENT_S)
    try:
        found.wait_joined()
        site.wait_until_unlocked()
        assert site.http.post("/metrics/reset").text == "ok"
        yield found
    finally:
        found.close()


def test_every_documented_metric_is_declared(site: EngineSite) -> None:
    expected = {Family(on_prometheus(name, kind, unit), kind, labels) for name, kind, unit, labels in _DOCUMENTED}
    assert expected - families(site.http) == set()


class Story:
    """What the engine and its operator do, step by step; each step waits until it is counted."""

    def __init__(self, site: EngineSite, engine: EngineHandle) -> None:
        self.site = site
        self.engine = engine

    def wait_for(self, expected: Mapping[str, float], is_present: bool = False) -> dict[str, float]:
        """Counts never go down: one that is too high fails at once, unless it tells the present. Names come without
        prefix and, where there are none, without labels."""
        wanted = {_P + (name if "{" in name else name + "{}"): value for name, value in expected.items()}
        found: dict[str, float] = {}

        def is_so() -> bool:
            found.clear()
            found.update(scrape(self.site.http))
            too_high = {name: found[name] for name, value in wanted.items() if found.get(name, 0) > value}
            assert is_present or not too_high, (too_high, wanted)
            return all(found.get(name, 0) == value for name, value in wanted.items())

        try:
            wait_until(is_so)
        except AssertionError as error:
            missing = {name: found.get(name) for name, value in wanted.items() if found.get(name, 0) != value}
            raise AssertionError(f"{error}: {missing}, of {wanted}") from error
        return found

    def wait_for_speed_of(self, direction: str) -> None:
        """A worker tells of it behind its transfer; its engine's name is made up at its start."""
        name = re.compile(
            rf"{_P}l0_l1_{direction}_throughput_GB_per_second_count"
            rf"{{device=cpu,engine_id=counted-\w+,model_name={MODEL}}}"
        )
        wait_until(lambda: [value for each, value in scrape(self.site.http).items() if name.fullmatch(each)] == [1])

    def drop_from_l1(self) -> None:
        self.site.wait_until_unlocked()
        entries = self.site.http.get("/cache/objects?tier=l1").json()["entries"]
        body = {"keys": [entry["key"] for entry in entries], "tier": "l1"}
        deleted = self.site.http.request("DELETE", "/cache/objects", json=body).json()
        assert (deleted["deleted"], deleted["skipped"]) == (_NUM, 0)

    def worker(self) -> str:
        [instance_id] = self.site.instance_ids()
        return f"{{model_name={MODEL},worker_id={instance_id}}}"


_MODEL = f"{{model_name={MODEL}}}"
_TIER = "{l2_name=mock}"


def test_counts_are_those_of_what_happened(site: EngineSite, engine: EngineHandle) -> None:
    story = Story(site, engine)
    _stores_reach_the_tier(story)
    _loads_come_from_l1(story)
    _what_left_l1_is_counted(story)
    _loads_come_from_l2(story)
    _gauges_tell_the_present(story)
    _eviction_from_l2_is_counted(story)


def _stores_reach_the_tier(story: Story) -> None:
    assert story.engine.store(_NAMES).num_stored == [_NUM]
    story.wait_for({
        "l1_write_chunks_total": _NUM,
        "num_submitted_stores_requests_total": 1, "num_finished_stores_requests_total": 1,
        "l2_store_submitted_requests_total": _NUM, "l2_store_submitted_objects_chunks_total": _NUM,
        f"l2_store_completed_requests_total{_TIER}": _NUM, "l2_store_completed_objects_chunks_total": _NUM,
        f"l2_store_throughput_GB_per_second_count{_TIER}": _NUM,
    })  # fmt: skip
    story.wait_for_speed_of("store")


def _loads_come_from_l1(story: Story) -> None:
    assert story.engine.read(_NAMES) == _NUM
    found = story.wait_for({
        "lookups_requests_total": 1, "l1_read_chunks_total": _NUM,
        f"lookup_requested_tokens_total{_MODEL}": _PROMPT_TOKENS, f"lookup_hit_tokens_total{_MODEL}": _PROMPT_TOKENS,
        f"lookup_hit_l1_tokens_total{_MODEL}": _PROMPT_TOKENS, f"num_chunks_loaded_total{story.worker()}": _NUM,
        "l1_chunk_reuse_gap_seconds_count": _NUM, "real_reuse_gap_seconds_count": _NUM,
    })  # fmt: skip
    story.wait_for_speed_of("load")
    for never in ("lookup_hit_l2_tokens_total", "l2_prefetch_lookup_requests_total", "l1_evicted_chunks_total"):
        assert not any(value for name, value in found.items() if name.startswith(_P + never))


def _what_left_l1_is_counted(story: Story) -> None:
    story.drop_from_l1()
    story.wait_for({
        "l1_evicted_chunks_total": _NUM, "l1_chunk_lifetime_seconds_count": _NUM,
        "l1_chunk_idle_before_evict_seconds_count": _NUM,
    })  # fmt: skip


def _loads_come_from_l2(story: Story) -> None:
    assert story.engine.read(_NAMES) == _NUM
    story.wait_for({
        "lookups_requests_total": 2, "l1_read_chunks_total": 2 * _NUM, "l1_write_chunks_total": _NUM,
        f"lookup_requested_tokens_total{_MODEL}": 2 * _PROMPT_TOKENS,
        f"lookup_hit_tokens_total{_MODEL}": 2 * _PROMPT_TOKENS, f"lookup_hit_l1_tokens_total{_MODEL}": _PROMPT_TOKENS,
        f"lookup_hit_l2_tokens_total{_MODEL}": _PROMPT_TOKENS, f"num_chunks_loaded_total{story.worker()}": 2 * _NUM,
        "l2_prefetch_lookup_requests_total": 1, "l2_prefetch_lookup_objects_chunks_total": _NUM,
        "l2_prefetch_hit_chunks_total": _NUM, "l2_prefetch_load_submitted_requests_total": 1,
        "l2_prefetch_load_submitted_objects_chunks_total": _NUM, "l2_prefetch_load_completed_chunks_total": _NUM,
        f"l2_load_completed_requests_total{_TIER}": _NUM, f"l2_load_throughput_GB_per_second_count{_TIER}": _NUM,
        "l1_chunk_evict_reuse_gap_seconds_count": _NUM, "l1_evicted_chunks_total": _NUM,
    })  # fmt: skip


def _gauges_tell_the_present(story: Story) -> None:
    story.site.wait_until_unlocked()
    entries = story.site.http.get("/l2/keys").json()["entries"]
    in_l1 = story.site.l1()
    assert in_l1["memory_used_bytes"] >= _NUM * CHUNK_BYTES
    found = story.wait_for({
        "l1_memory_usage_bytes": in_l1["memory_used_bytes"], "l1_usage_ratio": in_l1["memory_usage_ratio"],
        f"l2_usage_bytes{_TIER}": sum(entry["size_bytes"] for entry in entries), "l2_adapters{state=active}": 1,
        "active_prefetch_jobs": 0, "active_sessions": 0,
    }, is_present=True)  # fmt: skip
    assert len(entries) == _NUM
    idle = ("num_inflight_l2_stores", "num_inflight_l2_loads", "inflight_load_memory_usage_bytes")
    assert [name for name in found if name.startswith(tuple(_P + each for each in idle))] == []


def _eviction_from_l2_is_counted(story: Story) -> None:
    entry = story.site.http.get("/l2/keys").json()["entries"][0]
    answer = story.site.http.post("/reconfigure/mock/resize", json={"size": entry["size_bytes"]})
    assert answer.status_code == 200, answer.text
    story.wait_for({"l2_evicted_objects_chunks_total": _NUM - 1})


def test_histograms_have_the_default_buckets(site: EngineSite, engine: EngineHandle) -> None:
    engine.store(["of the buckets"])
    name = _P + "l2_store_throughput_GB_per_second_bucket{"
    bounds: list[Any] = []

    def are_there() -> bool:
        lines = site.http.get("/metrics").text.splitlines()
        bounds[:] = [line.split('le="')[1].split('"')[0] for line in lines if line.startswith(name)]
        return bool(bounds)

    wait_until(are_there)
    assert tuple(bounds) == _DEFAULT_BUCKETS
