"""Settings groups: frozen, documented names, and checks that hold without a command line."""

from __future__ import annotations

import dataclasses

import pytest

from lmcache.config.checks import is_loopback
from lmcache.config.mp_server import HTTPConfig, MPConfig, MPServerConfig, StorageManagerConfig
from lmcache.errors import ConfigError


def test_groups_bear_the_documented_names() -> None:
    config = MPServerConfig(MPConfig("id"))
    assert list(config.by_name()) == ["mp", "storage_manager", "observability", "http", "coordinator"]
    assert config.by_name()["mp"] is config.mp


def test_settings_do_not_change_after_the_start() -> None:
    config = MPConfig("id")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("*", False),
        ("192.168.0.1", False),
        ("localhost.example.com", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    if not expected:
        with pytest.raises(ConfigError, match="--zmq-token-file"):
            MPConfig("id", host=host)
        assert MPConfig("id", host=host, zmq_token_file="token").host == host


@pytest.mark.parametrize("name", [".", "..", "a/b", "-x", "", "x" * 101, "a b", "ä", "a\n"])
def test_bad_pool_names(name: str) -> None:
    with pytest.raises(ConfigError, match="--shm-name"):
        MPConfig("id", shm_name=name)


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_sizes(size: float) -> None:
    with pytest.raises(ConfigError, match="--l1-size-gb"):
        StorageManagerConfig(l1_size_gb=size)


def test_ports_must_differ_unless_any_will_do() -> None:
    with pytest.raises(ConfigError, match="both 6000"):
        MPServerConfig(MPConfig("id", port=6000), http=HTTPConfig(http_port=6000))
    MPServerConfig(MPConfig("id", port=0, shm_name="x"), http=HTTPConfig(http_port=0))
