"""Changes at run time: what is refused, who is told, and in which order."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.config.engine import _CONFIG_DEFINITIONS, Change, LMCacheEngineConfig
from lmcache.errors import ConfigChangeError, ConfigError
from lmcache.testing.waiting import PATIENCE_S

FIXED = {
    "chunk_size", "pre_caching_hash_algorithm", "max_local_cpu_size", "reserve_local_cpu_size", "lmcache_instance_id",
    "lmcache_worker_ports", "internal_api_server_host", "internal_api_server_port_start",
    "internal_api_server_socket_path_prefix", "internal_api_server_auth_token_file", "internal_api_server_redact_env",
    "internal_api_server_disable", "internal_api_server_ssl_certfile", "internal_api_server_ssl_keyfile",
}  # fmt: skip


@pytest.fixture
def config() -> LMCacheEngineConfig:
    return LMCacheEngineConfig({})


def told_of(config: LMCacheEngineConfig, *keys: str) -> list[tuple[str, object, object]]:
    seen: list[tuple[str, object, object]] = []
    config.subscribe(keys or None, lambda change: seen.append((change.key, change.old, change.new)))
    return seen


def refusal(config: LMCacheEngineConfig, key: str, value: object) -> str:
    with pytest.raises(ConfigChangeError) as caught:
        config.set(key, value)
    return caught.value.reason


def test_only_what_must_be_is_fixed() -> None:
    assert {key for key, definition in _CONFIG_DEFINITIONS.items() if not definition.mutable} == FIXED


@pytest.mark.parametrize("key", sorted(FIXED))
def test_fixed_keys_are_refused_before_their_value_is_looked_at(config: LMCacheEngineConfig, key: str) -> None:
    assert refusal(config, key, object()) == "Config is not mutable at runtime"
    assert config.get(key) == _CONFIG_DEFINITIONS[key].default


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("unknown_key", 1, "Unknown config"),
        ("", 1, "Unknown config"),
        ("set", 1, "Unknown config"),
        ("pd_role", "sender", "Unknown config"),
        ("min_retrieve_tokens", -1, "Failed to set config value"),
        ("min_retrieve_tokens", "many", "Failed to set config value"),
        ("min_retrieve_tokens", None, "Failed to set config value"),
        ("hit_miss_ratio", 2, "Failed to set config value"),
        ("external_lookup_client", "mooncakestore://x", "Failed to set config value"),
        ("remote_url", "redis://host:port", "Failed to set config value"),
        ("enable_xpyd", True, "Failed to set config value"),
        ("extra_config", {"ping_timeout": -1}, "Failed to set config value"),
        ("lmcache_worker_port", 1, "Config is not mutable at runtime"),
    ],
)
def test_refusals_bear_the_documented_reason(config: LMCacheEngineConfig, key: str, value: object, reason: str) -> None:
    seen = told_of(config)
    before = config.as_dict()
    assert refusal(config, key, value) == reason
    assert (config.as_dict(), seen) == (before, [])


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("min_retrieve_tokens", 512, 512),
        ("min_retrieve_tokens", "512", 512),
        ("save_decode_cache", "true", True),
        ("cache_policy", "lfu", "LFU"),
        ("retrieve_locations", "LocalCPUBackend,RemoteBackend-fs", ("LocalCPUBackend", "RemoteBackend-fs")),
        ("extra_config", '{"a": {"b": [1]}}', {"a": {"b": [1]}}),
        ("hit_miss_ratio", None, None),
        ("local_disk", "/x", "/x"),
    ],
)
def test_values_are_converted_and_kept(config: LMCacheEngineConfig, key: str, value: object, kept: object) -> None:
    assert config.set(key, value) == kept
    assert config.get(key) == getattr(config, key) == kept


def test_extra_config_is_replaced_whole(config: LMCacheEngineConfig) -> None:
    config.set("extra_config", {"a": 1})
    config.set("extra_config", {"b": 2})
    assert config.extra_config == {"b": 2}


def test_nobody_assigns_to_a_key(config: LMCacheEngineConfig) -> None:
    with pytest.raises(AttributeError, match="cannot be assigned"):
        config.min_retrieve_tokens = 5
    assert config.min_retrieve_tokens == 0


def test_who_subscribed_is_told_old_and_new(config: LMCacheEngineConfig) -> None:
    own, everything = told_of(config, "min_retrieve_tokens", "cache_policy"), told_of(config)
    config.set("min_retrieve_tokens", 5)
    config.set("local_cpu", False)
    config.set("min_retrieve_tokens", 5)
    config.set("cache_policy", "MRU")
    assert own == [("min_retrieve_tokens", 0, 5), ("cache_policy", "LRU", "MRU")]
    assert everything == [own[0], ("local_cpu", True, False), own[1]]


def test_a_subscription_ends(config: LMCacheEngineConfig) -> None:
    seen: list[Change] = []
    unsubscribe = config.subscribe(["local_cpu"], seen.append)
    other = told_of(config)
    unsubscribe()
    unsubscribe()
    config.set("local_cpu", False)
    assert (seen, len(other)) == ([], 1)


def test_unknown_keys_cannot_be_subscribed_to_or_read(config: LMCacheEngineConfig) -> None:
    with pytest.raises(ConfigError, match="there is no key 'nothing'"):
        config.subscribe(["nothing"], lambda change: None)
    with pytest.raises(ConfigError, match="there is no key"):
        config.get("nothing")
    assert config.get("controller_url") is None


def test_one_subscriber_that_fails_does_not_keep_the_others_from_hearing(
    config: LMCacheEngineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(change: Change) -> None:
        raise RuntimeError("boom")

    config.subscribe(None, fail)
    seen = told_of(config)
    with caplog.at_level(logging.ERROR):
        config.set("local_cpu", False)
        config.set("local_cpu", True)
    assert len(seen) == 2
    assert "could not follow the change of local_cpu" in caplog.text


def test_a_process_that_is_told_to_end_inside_a_callback_leaves_no_turn_taken(config: LMCacheEngineConfig) -> None:
    def interrupt(change: Change) -> None:
        raise KeyboardInterrupt

    unsubscribe = config.subscribe(None, interrupt)
    with pytest.raises(KeyboardInterrupt):
        config.set("local_cpu", False)
    unsubscribe()
    seen = told_of(config)
    config.set("local_cpu", True)
    assert seen == [("local_cpu", False, True)]


def test_a_callback_may_change_read_and_unsubscribe(config: LMCacheEngineConfig) -> None:
    order = told_of(config)

    def follow(change: Change) -> None:
        unsubscribe()
        assert config.set("lookup_timeout_ms", config.min_retrieve_tokens) == 7

    unsubscribe = config.subscribe(["min_retrieve_tokens"], follow)
    late = told_of(config)
    config.set("min_retrieve_tokens", 7)
    # The change made inside comes after the one it followed, for everybody.
    assert order == late == [("min_retrieve_tokens", 0, 7), ("lookup_timeout_ms", 3000, 7)]


def test_reading_goes_on_while_a_subscriber_is_busy(config: LMCacheEngineConfig) -> None:
    entered, leave = threading.Event(), threading.Event()

    def linger(change: Change) -> None:
        entered.set()
        assert leave.wait(PATIENCE_S)

    config.subscribe(["local_cpu"], linger)
    seen = told_of(config)
    first = threading.Thread(target=config.set, args=("local_cpu", False))
    first.start()
    assert entered.wait(PATIENCE_S)
    assert config.local_cpu is False
    config.set("min_retrieve_tokens", 3)
    assert (config.min_retrieve_tokens, seen) == (3, [])
    leave.set()
    first.join(PATIENCE_S)
    assert seen == [("local_cpu", True, False), ("min_retrieve_tokens", 0, 3)]


def test_a_subscriber_that_never_returns_does_not_let_changes_pile_up(config: LMCacheEngineConfig) -> None:
    entered, leave = threading.Event(), threading.Event()

    def linger(change: Change) -> None:
        entered.set()
        assert leave.wait(PATIENCE_S)

    unsubscribe = config.subscribe(["local_cpu"], linger)
    first = threading.Thread(target=config.set, args=("local_cpu", False))
    first.start()
    assert entered.wait(PATIENCE_S)
    try:
        taken = 0
        while config.min_retrieve_tokens == taken < 5000:
            taken += 1
            with contextlib.suppress(ConfigChangeError):
                config.set("min_retrieve_tokens", taken)
        assert 1 < taken < 5000
        with pytest.raises(ConfigChangeError, match="do not follow"):
            config.set("cache_policy", "MRU")
        assert config.cache_policy == "LRU"
    finally:
        unsubscribe()
        leave.set()
        first.join(PATIENCE_S)
    config.set("min_retrieve_tokens", 0)


def test_threads_that_change_together_are_told_of_in_one_order(config: LMCacheEngineConfig) -> None:
    seen = told_of(config, "min_retrieve_tokens")
    barrier = threading.Barrier(4)

    def change(start: int) -> None:
        barrier.wait(PATIENCE_S)
        for value in range(start, start + 200):
            config.set("min_retrieve_tokens", value)

    threads = [threading.Thread(target=change, args=(1000 * number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(seen) == 800
    # Each change begins with the value that the one before left.
    assert [old for _, old, _ in seen] == [0, *(new for _, _, new in seen[:-1])]
    assert seen[-1][2] == config.min_retrieve_tokens


def test_shown_without_secrets(config: LMCacheEngineConfig) -> None:
    config.set("extra_config", {"remote_storage_plugin.redis.password": "hunter2", "a": 1})
    config.set("remote_url", "redis://user:hunter2@host:1")
    shown = config.as_dict()
    assert list(shown) == list(_CONFIG_DEFINITIONS)
    assert "hunter2" not in json.dumps(shown)
    assert shown["extra_config"] == {"remote_storage_plugin.redis.password": "***", "a": 1}
    assert config.as_dict(["chunk_size", "nothing", "min_retrieve_tokens"]) == {
        "chunk_size": 256,
        "min_retrieve_tokens": 0,
    }
    assert config.as_dict([]) == {}
    assert config.as_dict(["enable_xpyd"]) == {"enable_xpyd": False}


def test_value_nested_too_deeply_to_be_shown_is_refused_like_any_other(config: LMCacheEngineConfig) -> None:
    deep = json.loads("[" * 500 + "]" * 500)
    for key in ("app_id", "min_retrieve_tokens", "extra_config"):
        assert refusal(config, key, deep) == "Failed to set config value"


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("quiet")
def test_a_change_is_whole_or_not_made() -> None:
    values = (
        st.none()
        | st.booleans()
        | st.integers(-5, 5)
        | st.floats()
        | st.text(max_size=5)
        | st.just({"ping_timeout": 1})
    )

    @given(st.lists(st.tuples(st.sampled_from(sorted(_CONFIG_DEFINITIONS)), values), max_size=20))
    def run(changes: list[tuple[str, object]]) -> None:
        config = LMCacheEngineConfig({})
        model = {key: definition.default for key, definition in _CONFIG_DEFINITIONS.items()}
        heard = dict(model)
        config.subscribe(None, lambda change: heard.update({change.key: change.new}))
        for key, value in changes:
            with contextlib.suppress(ConfigChangeError):
                model[key] = config.set(key, value)
            assert {name: config.get(name) for name in model} == model == heard

    run()
