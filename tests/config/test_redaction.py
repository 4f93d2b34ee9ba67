"""What is hidden and what is shown: every setting that there is, both ways, and names that others may choose."""

from __future__ import annotations

import dataclasses

import pytest

from lmcache.config.engine import _CONFIG_DEFINITIONS, LMCacheEngineConfig
from lmcache.config.engine.extra import EXTRA_DEFINITIONS
from lmcache.config.json_safe import make_json_safe
from lmcache.config.mp_server import (
    CoordinatorConfig,
    HTTPConfig,
    MPConfig,
    MPServerConfig,
    ObservabilityConfig,
    StorageManagerConfig,
)
from lmcache.config.redaction import looks_secret, redact_text
from lmcache.errors import ConfigChangeError
from lmcache.l2.registry import adapter_modules
from lmcache.serde.registry import SERDE_NAMES, serde_module

# All that there are among the settings of adapters.
_SECRET_SETTINGS = {"password", "aws_access_key_id", "aws_secret_access_key", "aws_session_token"}
_SECRET_NAMES = (
    "api_key", "API_KEYS", "x-api-key", "token", "tokens", "auth_token", "AUTH_TOKENS", "HF_TOKEN", "hf_token",
    "max_tokens_secret", "secret", "client_secret", "password", "passwd", "db_pwd", "passphrase", "credentials",
    "credential", "access_key", "s3_secret_key", "aws_session_token", "private-key", "authorization", "cookie",
    "remote_storage_plugin.s3.aws_secret_access_key", "authTokenMax", "numtoken", "tokens_percy",
)  # fmt: skip
_SHOWN_NAMES = (
    "min_retrieve_tokens", "blend_min_tokens", "max_tokens", "MAX_NUM_BATCHED_TOKENS", "num_tokens", "total-tokens",
    "max_prompt_len_tokens", "tokens_per_block", "tokenizer", "tokenizer_mode", "skip_tokenizer_init",
    "TOKENIZERS_PARALLELISM", "token_file", "tls_key_file", "author", "keep", "keyboard",
)  # fmt: skip


@pytest.mark.parametrize("name", _SECRET_NAMES)
def test_name_of_a_secret(name: str) -> None:
    assert looks_secret(name)
    assert redact_text(name, "open sesame") == "***"
    assert make_json_safe({"inside": [{name: "open sesame"}]}) == {"inside": [{name: "***"}]}


@pytest.mark.parametrize("name", _SHOWN_NAMES)
def test_name_of_none(name: str) -> None:
    assert redact_text(name, "512") == "512"
    assert make_json_safe({name: "512"}) == {name: "512"}


def test_no_key_of_the_engine_is_a_secret() -> None:
    """Secrets come in URLs and inside of `extra_config`."""
    assert [name for name in (*_CONFIG_DEFINITIONS, *EXTRA_DEFINITIONS) if looks_secret(name)] == []


def refusal_of(key: str, value: object) -> str | None:
    """None: it was taken."""
    try:
        LMCacheEngineConfig({}).set(key, value)
    except ConfigChangeError as error:
        return str(error)
    return None


def test_refusals_show_the_value() -> None:
    keys = [name for name, known in _CONFIG_DEFINITIONS.items() if known.mutable and not known.refusal]
    told = {key: why for key in keys if (why := refusal_of(key, "abc")) is not None}
    assert {"min_retrieve_tokens", "blend_min_tokens"} <= told.keys()
    assert [key for key, why in told.items() if "'abc'" not in why] == []


def test_secrets_inside_of_keys_are_hidden() -> None:
    """In every text of the configuration: under their names, and in URLs."""
    for key, definition in _CONFIG_DEFINITIONS.items():
        url = "redis://me:open-sesame@host:6379"
        given = {"api_key": "open-sesame", "url": url} if definition.kind.name == "object" else url
        assert "sesame" not in str(make_json_safe({key: given}))
    shown = LMCacheEngineConfig({"extra_config": {"a.password": "open-sesame", "b": {"token": "open-sesame"}}})
    assert shown.as_dict(["extra_config"]) == {"extra_config": {"a.password": "***", "b": {"token": "***"}}}


def test_settings_of_adapters_and_serdes() -> None:
    classes = [module.Config for module in adapter_modules().values()]
    classes += [serde_module(name).Config for name in SERDE_NAMES]
    names = {field.name for settings in classes for field in dataclasses.fields(settings)}
    assert {name for name in names if looks_secret(name)} == _SECRET_SETTINGS
    for name in names:
        expected = "***" if name in _SECRET_SETTINGS else "abc"
        assert make_json_safe({name: "abc"}) == {name: expected}


def test_settings_of_the_server_name_no_secret() -> None:
    groups = (MPServerConfig, MPConfig, StorageManagerConfig, ObservabilityConfig, HTTPConfig, CoordinatorConfig)
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    assert [name for name in names if looks_secret(name)] == []
