"""Flags about tiers: each reaches the setting that it is about, and a running server tells of it."""

from __future__ import annotations

import pathlib
from operator import attrgetter

import pytest

from lmcache.cli.server import command, parse
from lmcache.engine.pool import PoolConfig
from lmcache.memory.pool_files import Geometry
from lmcache.server.process import engine_config
from lmcache.storage.manager import StorageConfig
from tests.server.conftest import StartServer

MEMORY = '{"type": "memory", "max_size_gb": 1}'
# A value that is not the default, and where it goes.
FLAGS = {
    "--l2-store-policy": ("skip_l1", "store_policy", "skip_l1"),
    "--l2-prefetch-policy": ("first", "prefetch_policy", "first"),
    "--l2-prefetch-max-in-flight": ("3", "prefetch.max_in_flight", 3),
    "--l2-scrub-objects-per-second": ("2.5", "scrub.objects_per_s", 2.5),
    "--l2-drain-timeout-seconds": ("7", "drain_timeout_s", 7.0),
}


def settings_of(*flags: str) -> StorageConfig:
    """What the engine of a server with these flags is given."""
    config, warnings = parse(command.make_context("server", list(flags)).params)
    assert warnings == []
    pool = PoolConfig(pathlib.Path("/dev/shm/lmcache-test-none"), Geometry(4096, 1))
    return engine_config(config, pool).storage


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_reaches_its_setting_and_no_other(flag: str) -> None:
    value, setting, expected = FLAGS[flag]
    given, plain = settings_of(flag, value), settings_of()
    assert attrgetter(setting)(given) == expected != attrgetter(setting)(plain)
    for other in FLAGS.values():
        if other[1] != setting:
            assert attrgetter(other[1])(given) == attrgetter(other[1])(plain), other[1]


def test_without_flags_the_settings_are_those_of_the_parts() -> None:
    assert settings_of() == StorageConfig()


def test_adapters_keep_their_order() -> None:
    fs = '{"type": "fs", "base_path": "/nowhere"}'
    settings = settings_of("--l2-adapter", fs, "--l2-adapter", MEMORY, "--l2-adapter", fs)
    assert [spec.type for spec in settings.adapters] == ["fs", "memory", "fs"]


def test_a_running_server_tells_what_it_was_given(start_server: StartServer) -> None:
    flags = [word for flag, (value, *_) in FLAGS.items() for word in (flag, value)]
    server = start_server("--l2-adapter", MEMORY, *flags)
    server.wait_until_up()

    status = server.http.get("/status").json()["storage_manager"]

    assert status["store_controller"]["policy"] == "skip_l1"
    assert status["prefetch_controller"]["policy"] == "first"
    assert status["prefetch_controller"]["max_in_flight"] == 3
    assert status["l2_scrubber"]["objects_per_second"] == 2.5
    given = server.http.get("/conf").json()["storage_manager"]
    assert {name: given[name] for name in map(setting_name, FLAGS)} == {
        setting_name(flag): expected for flag, (_, _, expected) in FLAGS.items()
    }


def setting_name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
