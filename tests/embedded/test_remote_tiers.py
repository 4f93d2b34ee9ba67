"""`remote_url` and `remote_storage_plugins` as users write them, against real servers: what one engine stored another
finds, and the scheduler's own engine promises it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from lmcache.config.engine.loading import load_engine_config
from lmcache.embedded.tier_engine import TierEngine
from lmcache.integration.vllm.embedded_settings import embedded_config
from lmcache.testing.redis_server import RedisServer
from lmcache.testing.s3_servers import ACCESS_KEY_ID, BUCKET, REGION, SECRET_ACCESS_KEY, MotoServer
from tests.embedded.site import CHUNK_SIZE, PATIENCE_S, config_of, opened, prompt_of
from tests.l2.redis_servers import need_redis_server


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    need_redis_server()
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoServer]:
    pytest.importorskip("moto")
    server = MotoServer()
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["redis", "s3", "fs"])
def settings(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """The name of the backend, and the keys that ask for it."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        return "RemoteBackend", {"remote_url": f"redis://127.0.0.1:{server.port}/0", "remote_serde": "zstd"}
    if request.param == "s3":
        extra = {
            "s3_endpoint_url": request.getfixturevalue("moto").url, "s3_region": REGION, "s3_prefix": "embedded",
            "aws_access_key_id": ACCESS_KEY_ID, "aws_secret_access_key": SECRET_ACCESS_KEY,
        }  # fmt: skip
        return "RemoteBackend", {"remote_url": f"s3://{BUCKET}", "extra_config": extra}
    extra = {"remote_storage_plugin.fs.base_path": str(tmp_path / "files")}
    return "RemoteBackend-fs", {"remote_storage_plugins": ["fs"], "extra_config": extra}


def test_what_one_engine_stored_another_finds(settings: tuple[str, dict[str, Any]], pool_folder: pathlib.Path) -> None:
    name, keys = settings
    given = {f"lmcache.{key}": value for key, value in ({"chunk_size": CHUNK_SIZE} | keys).items()}
    config, warnings = load_engine_config({}, given)
    assert warnings == []
    asked = embedded_config(config, rank=0, stores_for_others=False)
    wanted = dataclasses.replace(asked, pool_bytes=config_of().pool_bytes)
    with opened(pool_folder, wanted) as first:
        assert first.store("abc", salt="tenant") == "abc"
        first.wait_until_stored()
        assert first.engine.usage()[name] > 0
        rank_group = first.engine.rank.rank_group
    with opened(pool_folder, wanted) as second:
        assert second.lookup("abcd", wait_s=PATIENCE_S, salt="tenant") == 3
        assert second.retrieve("abc", salt="tenant") == ""
        assert second.lookup("a", wait_s=PATIENCE_S) == 0
    scheduler = TierEngine([wanted], "model", [rank_group])
    scheduler.start()
    try:
        assert scheduler.count_leading(prompt_of("abcd", "tenant"), 20.0) == 3
        assert scheduler.clear([name]) == 3
        assert scheduler.count_leading(prompt_of("abcd", "tenant"), 20.0) == 0
    finally:
        scheduler.close()
