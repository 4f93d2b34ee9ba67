"""Changes that somebody looks at before they are made: what cannot be followed is not kept."""

from __future__ import annotations

import pytest

from lmcache.config.engine import Change, LMCacheEngineConfig
from lmcache.config.engine.config import FAILED, NOT_MUTABLE, UNKNOWN
from lmcache.errors import ConfigChangeError, ConfigError

KEYS = ("min_retrieve_tokens", "pin_timeout_sec")


class Sum:
    """Refuses what adds up to more than `limit`."""

    def __init__(self, config: LMCacheEngineConfig, limit: int) -> None:
        self.config = config
        self.limit = limit
        self.told: list[Change] = []
        config.subscribe(KEYS, self.told.append)
        self.end = config.check(KEYS, self.look)

    def look(self, wanted: LMCacheEngineConfig) -> None:
        total = wanted.min_retrieve_tokens + wanted.pin_timeout_sec
        if total > self.limit:
            raise ConfigError(f"{total:g} is more than {self.limit}")


@pytest.fixture
def config() -> LMCacheEngineConfig:
    return LMCacheEngineConfig({"min_retrieve_tokens": 10, "pin_timeout_sec": 20.0})


def test_what_is_refused_is_neither_kept_nor_told(config: LMCacheEngineConfig) -> None:
    watch = Sum(config, 30)
    with pytest.raises(ConfigChangeError, match="31 is more than 30") as refusal:
        config.set("min_retrieve_tokens", 11)
    assert refusal.value.reason == FAILED
    assert (config.min_retrieve_tokens, watch.told) == (10, [])
    assert config.set("min_retrieve_tokens", 9) == 9
    assert [(change.key, change.old, change.new) for change in watch.told] == [("min_retrieve_tokens", 10, 9)]


def test_other_keys_are_not_looked_at(config: LMCacheEngineConfig) -> None:
    Sum(config, 0)
    assert config.set("save_decode_cache", True) is True


def test_a_check_that_was_ended_is_not_asked(config: LMCacheEngineConfig) -> None:
    watch = Sum(config, 0)
    watch.end()
    watch.end()
    assert config.set("min_retrieve_tokens", 99) == 99


@pytest.mark.parametrize("order", [KEYS, KEYS[::-1]])
def test_values_that_only_go_together_are_taken_together(config: LMCacheEngineConfig, order: tuple[str, str]) -> None:
    watch = Sum(config, 30)
    wanted = {"min_retrieve_tokens": 25, "pin_timeout_sec": 5.0}
    updated, errors = config.set_all({key: wanted[key] for key in order})
    assert (updated, errors) == (wanted, {})
    assert [change.key for change in watch.told] == list(order)


@pytest.mark.parametrize("order", [KEYS, KEYS[::-1]])
def test_one_that_cannot_be_does_not_keep_the_others_out(config: LMCacheEngineConfig, order: tuple[str, str]) -> None:
    """Whatever the order in which they are named."""
    config.check(("chunk_statistics_auto_exit_timeout_hours",), refuse)
    Sum(config, 30)
    wanted: dict[str, object] = {"min_retrieve_tokens": 15, "pin_timeout_sec": 15.0}
    given = {key: wanted[key] for key in order}
    updated, errors = config.set_all(
        given | {"chunk_statistics_auto_exit_timeout_hours": 1.0, "chunk_size": 64, "no_such_key": 1}
    )
    assert updated == given
    assert {key: error.reason for key, error in errors.items()} == {
        "chunk_statistics_auto_exit_timeout_hours": FAILED, "chunk_size": NOT_MUTABLE, "no_such_key": UNKNOWN,
    }  # fmt: skip
    assert config.pin_timeout_sec == 15.0


def refuse(wanted: LMCacheEngineConfig) -> None:
    raise ConfigError("never")
