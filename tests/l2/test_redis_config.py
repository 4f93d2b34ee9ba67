"""Settings of the Redis adapter: what is refused, and with which words; the environment; the names of objects."""

from __future__ import annotations

import json
import sys

import pytest

from lmcache.config.json_safe import safe_asdict
from lmcache.errors import ConfigError
from lmcache.l2.base import AdapterContext
from lmcache.l2.redis import make
from lmcache.l2.redis.config import RedisConfig
from lmcache.l2.redis.names import Names
from lmcache.l2.registry import make_adapter, parse_adapter
from lmcache.testing.l2_backend import make_key
from lmcache.testing.l2_contract import ODD_KEYS, TWINS

HERE = {"host": "redis.local", "port": 6379}

WRONG = [
    ({}, "missing field 'host', and LMCACHE_RESP_HOST is not set"),
    ({"host": "a"}, "missing field 'port', and LMCACHE_RESP_PORT is not set"),
    ({"host": "", "port": 1}, "host must be a text"),
    ({"host": "a", "port": 0}, "port must be a whole number of at least 1"),
    ({"host": "a", "port": "6379"}, "port must be a whole number"),
    ({"host": "a", "port": 65536}, "port must be at most 65535"),
    ({**HERE, "unix_socket_path": "/run/redis"}, "only one of them"),
    ({**HERE, "nodes": ["a:1"]}, "only one of them"),
    ({"nodes": "a:1"}, "nodes must be a list"),
    ({"nodes": ["a"]}, 'addresses such as "10.0.0.1:6379"'),
    ({"nodes": ["a:x"]}, 'addresses such as "10.0.0.1:6379"'),
    ({"nodes": [7]}, 'addresses such as "10.0.0.1:6379"'),
    ({"nodes": ["a:70000"]}, "at most 65535"),
    ({"nodes": ["a:1"], "db": 1}, "a cluster has only db 0"),
    ({"unix_socket_path": ""}, "unix_socket_path must be a text"),
    ({"unix_socket_path": "/run/redis", "tls": True}, "tls is not for a unix socket"),
    ({**HERE, "db": -1}, "db must be a whole number of at least 0"),
    ({**HERE, "password": ""}, "password must be a text that is not empty"),
    ({**HERE, "username": "me"}, "username needs a password"),
    ({**HERE, "tls": "yes"}, "tls must be true or false"),
    ({**HERE, "tls_ca_file": "/ca.pem"}, "tls_ca_file needs tls: true"),
    ({**HERE, "tls": True, "tls_cert_file": "/c.pem"}, "give both or neither"),
    ({**HERE, "prefix": ""}, "prefix must be 1 to 128 of the characters"),
    ({**HERE, "prefix": "a@b"}, "prefix must be 1 to 128 of the characters"),
    ({**HERE, "prefix": "a*"}, "prefix must be 1 to 128 of the characters"),
    ({**HERE, "num_workers": 0}, "num_workers must be a whole number of at least 1"),
    ({**HERE, "num_workers": 1000}, "num_workers must be at most 256"),
    ({**HERE, "max_capacity_gb": -1}, "max_capacity_gb must be a number of at least 0"),
    ({**HERE, "ttl_seconds": "1h"}, "ttl_seconds must be a number of at least 0"),
    ({**HERE, "socket_timeout_s": 0}, "socket_timeout_s must be a number greater than 0"),
    ({**HERE, "hots": "a"}, "did you mean 'host'"),
]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("HOST", "PORT", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"LMCACHE_RESP_{name}", raising=False)


@pytest.mark.parametrize(("fields", "text"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_honoured_is_refused(fields, text):
    with pytest.raises(ConfigError) as caught:
        parse_adapter(json.dumps({"type": "resp", **fields}), "--l2-adapter #2")
    assert str(caught.value).startswith("--l2-adapter #2: ")
    assert text in str(caught.value)


@pytest.mark.parametrize("type_name", ["resp", "valkey", "redis"])
def test_all_names_make_the_same_adapter(type_name):
    spec = parse_adapter(json.dumps({"type": type_name, **HERE}), "x")
    adapter = make_adapter(spec, AdapterContext(type_name))
    assert adapter.class_name == "RedisL2Adapter"
    assert adapter.type_name == type_name
    assert adapter.num_threads == 8
    adapter.close()


def test_the_environment_fills_what_is_not_given(monkeypatch):
    for name, value in (("HOST", "from-env"), ("PORT", "7000"), ("USERNAME", "env-user"), ("PASSWORD", "env-secret")):
        monkeypatch.setenv(f"LMCACHE_RESP_{name}", value)
    config = RedisConfig()
    assert (config.host, config.port, config.username, config.password) == ("from-env", 7000, "env-user", "env-secret")
    assert RedisConfig(host="given", port=1, password="mine").location == "Redis at given:1"
    assert RedisConfig(host="given", password="mine").password == "mine"
    assert RedisConfig(nodes=["a:1", "[::1]:2"]).addresses == [("a", 1), ("::1", 2)], "the way is told already"


def test_a_port_in_the_environment_that_is_none(monkeypatch):
    monkeypatch.setenv("LMCACHE_RESP_PORT", "many")
    with pytest.raises(ConfigError, match="LMCACHE_RESP_PORT must be a number"):
        RedisConfig(host="a")


def test_secrets_are_not_shown():
    config = RedisConfig(**HERE, username="me", password="hunter2")
    assert "hunter2" not in repr(config)
    shown = safe_asdict(config)
    assert shown["password"] == "***"
    assert shown["prefix"] == "lmcache"
    assert "hunter2" not in json.dumps(shown)


@pytest.mark.parametrize("library", ["redis", "hiredis"])
def test_without_its_library_the_extra_is_named(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=r"type valkey needs redis-py and hiredis: pip install lmcache\[redis\]"):
        make(RedisConfig(**HERE), AdapterContext("valkey"))


KEYS = [*ODD_KEYS, *[key for twins in TWINS for key in twins], make_key(1, model_name="a{b}c%7B%7D", cache_salt="{}")]


def test_a_name_says_its_key():
    names = Names("lmcache")
    assert {names.key(names.name(key)) for key in KEYS} == set(KEYS)
    assert len({names.name(key) for key in KEYS}) == len(set(KEYS))


def test_no_name_chooses_its_slot():
    assert not any(b"{" in Names("lmcache").name(key) for key in KEYS)


def test_prefixes_do_not_meet():
    longer = Names("lmcache:blue")
    assert Names("lmcache").key(longer.name(make_key(1))) is None
    assert longer.key(Names("lmcache").name(make_key(1))) is None


@pytest.mark.parametrize("name", [b"", b"lmcache", b"lmcache@", b"lmcache@\xff", b"lmcache@a@b@c@d", b"lmcache@@@1"])
def test_foreign_names(name):
    assert Names("lmcache").key(name) is None
