"""A real `lmcache standalone` whose settings are changed: what it answers is what it does."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.running_standalone import RunningStandalone

FAILED = "Failed to set config value"


@pytest.fixture
def running(tmp_path: pathlib.Path) -> Iterator[RunningStandalone]:
    extra = {"remote_storage_plugin.fs.base_path": str(tmp_path / "remote")}
    engine = RunningStandalone(
        LMCACHE_REMOTE_STORAGE_PLUGINS="fs", LMCACHE_EXTRA_CONFIG=json.dumps(extra),
        LMCACHE_LOCAL_DISK=str(tmp_path / "disk"), LMCACHE_MAX_LOCAL_DISK_SIZE="1",
    )  # fmt: skip
    try:
        engine.wait_until_up()
        yield engine
    finally:
        engine.close()


def shown(running: RunningStandalone, key: str) -> Any:
    return running.http.get("/conf", params={"names": key}).json()[key]


def is_hot(running: RunningStandalone) -> Any:
    return running.http.get("/hot_cache/status").json()["hot_cache"]


def refused(running: RunningStandalone, **values: object) -> dict[str, str]:
    """Why these are not set; nothing is."""
    before = {key: shown(running, key) for key in values}
    answer = running.http.post("/conf", json=values)
    assert (answer.status_code, answer.json()["updated"]) == (400, {}), answer.text
    assert answer.json()["errors"] == dict.fromkeys(values, FAILED)
    assert {key: shown(running, key) for key in values} == before
    return dict(answer.json()["messages"])


def test_what_no_tier_could_be_made_of_is_refused_and_the_rest_goes_on(
    running: RunningStandalone, tmp_path: pathlib.Path
) -> None:
    assert "needs a folder" in refused(running, extra_config={"save_chunk_meta": True})["extra_config"]
    assert "s3" in refused(running, remote_storage_plugins=["fs", "s3"])["remote_storage_plugins"]
    assert "/proc/nope" in refused(running, local_disk="/proc/nope")["local_disk"]
    # None of them left anything behind that later changes would stumble over.
    answer = running.http.post("/conf", json={"local_cpu": False, "local_disk": str(tmp_path / "other")})
    assert (answer.status_code, is_hot(running)) == (200, False), answer.text
    assert (tmp_path / "other").is_dir()


def test_settings_of_a_tier_come_with_the_tier(running: RunningStandalone, tmp_path: pathlib.Path) -> None:
    """Neither of them would do alone."""
    settings = {"s3_endpoint": "s3://bucket", "s3_region": "r", "s3_endpoint_url": "http://127.0.0.1:9"}
    extra = {f"remote_storage_plugin.s3.{name}": value for name, value in settings.items()}
    wanted = {"remote_storage_plugins": ["s3"], "extra_config": extra}
    names = list(wanted)
    assert set(refused(running, remote_storage_plugins=["s3"])) == {names[0]}
    answer = running.http.post("/conf", json=wanted)
    assert (answer.status_code, sorted(answer.json()["updated"])) == (200, sorted(names)), answer.text
    assert "RemoteBackend-s3" in running.http.get("/backends").text


def test_the_switch_of_the_hot_cache_is_its_setting(running: RunningStandalone) -> None:
    assert running.http.put("/hot_cache/disable").json()["hot_cache"] is False
    assert (shown(running, "local_cpu"), is_hot(running)) == (False, False)
    assert running.http.post("/conf", json={"local_cpu": True}).status_code == 200
    assert (shown(running, "local_cpu"), is_hot(running)) == (True, True)
    running.http.post("/conf", json={"local_cpu": False})
    assert running.http.put("/hot_cache/enable").json()["hot_cache"] is True
    assert shown(running, "local_cpu") is True
