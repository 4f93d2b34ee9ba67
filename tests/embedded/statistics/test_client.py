"""The lookup client that counts: it changes no answer, and is made by the configuration."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import pytest

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.config.engine.loading import load_engine_config
from lmcache.embedded.lookup.statistics_client import ChunkStatisticsLookupClient
from lmcache.embedded.manager import ChunkStatistics
from lmcache.embedded.statistics.making import make_recorder
from lmcache.testing.waiting import wait_until
from tests.conftest import FakeClock
from tests.embedded.statistics.site import FakeLookups, counted, prompt_of, recording


def configured(extra: dict[str, object] | None = None, **values: object) -> LMCacheEngineConfig:
    given = {f"lmcache.chunk_statistics_{key}": value for key, value in values.items()}
    return load_engine_config({}, {**given, "lmcache.extra_config": extra})[0]


@pytest.fixture
def inner() -> FakeLookups:
    return FakeLookups()


@pytest.fixture
def client(inner: FakeLookups) -> Iterator[ChunkStatisticsLookupClient]:
    config = configured({"chunk_statistics_mem_bf_expected_chunks": 1000}, auto_start_statistics=True)
    client = ChunkStatisticsLookupClient(inner, make_recorder(config))
    yield client
    client.close()


def test_answers_are_those_of_the_client_inside(client: ChunkStatisticsLookupClient, inner: FakeLookups) -> None:
    inner.answers = [None, 2, 1]
    prompt = prompt_of(600)
    assert [client.lookup("r1", prompt), client.lookup("r1", prompt, may_wait=False)] == [None, 2]
    assert client.lookup("r2", prompt_of(512)) == 1
    client.forget("r1")
    asked = dataclasses.replace(prompt, tail=None)
    assert inner.asked == [("r1", asked, True), ("r1", asked, False), ("r2", prompt_of(512), True)]
    assert inner.forgotten == ["r1"]
    assert client.layouts() == []
    assert client.name() == "ChunkStatisticsLookupClient(FakeLookups)"
    status = counted(client)
    assert (status["total_requests"], status["total_chunks"], status["unique_chunks"]) == (2, 5, 3)


@pytest.mark.parametrize("is_collecting", [True, False])
def test_a_short_prompt_is_counted_and_nobody_asked(
    client: ChunkStatisticsLookupClient, inner: FakeLookups, is_collecting: bool
) -> None:
    inner.answers = [7]
    if not is_collecting:
        client.stop()
    assert client.lookup("r1", prompt_of(100)) == 0
    assert not inner.asked
    assert counted(client)["total_chunks"] == int(is_collecting)


def test_operators_start_stop_and_reset(client: ChunkStatisticsLookupClient) -> None:
    client.lookup("r1", prompt_of(512))
    client.stop()
    client.lookup("r2", prompt_of(512))
    assert (counted(client)["total_requests"], client.status()["enabled"]) == (1, False)
    client.start()
    client.reset()
    assert (client.status()["total_requests"], client.status()["enabled"]) == (0, True)


def test_the_internal_api_takes_it_for_what_it_is(client: ChunkStatisticsLookupClient) -> None:
    assert isinstance(client, ChunkStatistics)
    assert not isinstance(FakeLookups(), ChunkStatistics)


def test_time_of_lookups_and_of_recording() -> None:
    clock = FakeClock()

    class SlowLookups(FakeLookups):
        def lookup(self, *question: object) -> int | None:
            clock.advance(2.0)
            return 1

    with recording(clock=clock) as recorder:
        client = ChunkStatisticsLookupClient(SlowLookups(), recorder, clock)
        for lookup_id in ("r1", "r1", "r2"):
            client.lookup(lookup_id, prompt_of(512))
        timing = client.status()["timing"]
    assert isinstance(timing, dict)
    assert (timing["lookup_time_seconds"], timing["total_time_seconds"]) == (6.0, 6.0)


def test_close_closes_both(inner: FakeLookups) -> None:
    client = ChunkStatisticsLookupClient(inner, make_recorder(configured(auto_start_statistics=True)))
    client.close()
    assert inner.is_closed
    assert client.status()["enabled"] is False


def test_nothing_is_counted_before_somebody_starts_it(inner: FakeLookups) -> None:
    client = ChunkStatisticsLookupClient(inner, make_recorder(configured()))
    client.lookup("r1", prompt_of(512))
    assert client.status()["total_requests"] == 0
    client.close()


def test_hashes_go_to_files(inner: FakeLookups, tmp_path: pathlib.Path) -> None:
    extra: dict[str, object] = {
        "chunk_statistics_file_output_dir": str(tmp_path / "hashes"), "chunk_statistics_file_rotation_size": 300,
        "chunk_statistics_file_max_count": 2,
    }  # fmt: skip
    config = configured(extra, strategy="file_hash", auto_start_statistics=True)
    client = ChunkStatisticsLookupClient(inner, make_recorder(config))
    for number in range(4):
        client.lookup(f"r{number}", prompt_of(600))
    status = counted(client)
    client.close()
    assert (status["total_chunks"], status["unique_chunks"], status["file_hash"]["file_count"]) == (12, 12, 2)
    lines = [json.loads(path.read_text()) for path in sorted((tmp_path / "hashes").iterdir())]
    assert [line["lookup_id"] for line in lines] == ["r2", "r3"]
    assert lines[0]["chunk_hashes"][:2] == [f"0x{digest.hex()}" for digest in prompt_of(600).digests]
    assert len(lines[0]["chunk_hashes"]) == 3


def test_a_changed_limit_acts_at_once(inner: FakeLookups) -> None:
    config = configured(auto_start_statistics=True, auto_exit_target_unique_chunks=100)
    client = ChunkStatisticsLookupClient(inner, make_recorder(config))
    client.lookup("r1", prompt_of(512))
    assert counted(client)["is_collecting"]
    config.set("chunk_statistics_auto_exit_target_unique_chunks", 2)
    assert client.status()["auto_exit_target_unique_chunks"] == 2
    client.lookup("r2", prompt_of(512))
    wait_until(lambda: not client.status()["is_collecting"])
    client.close()
