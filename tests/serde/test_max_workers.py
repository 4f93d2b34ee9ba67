"""`max_workers` of documented settings: taken, checked, and told to have no effect."""

from __future__ import annotations

import json
import logging
import pathlib

import pytest

from lmcache.errors import ConfigError
from lmcache.l2.base import AdapterContext
from lmcache.l2.registry import make_adapter, parse_adapter

_NO_EFFECT = "has no effect: objects are encoded and decoded by the threads of their adapter"


@pytest.fixture
def serdes(tmp_path: pathlib.Path) -> dict[str, dict[str, object]]:
    """As documented, by type."""
    key_file = tmp_path / "keys"
    key_file.write_text(f"first {'5a' * 32}\n")
    key_file.chmod(0o600)
    return {
        "fp8": {"type": "fp8", "fp8_dtype": "float8_e4m3fn"},
        "aesgcm": {"type": "aesgcm", "key_file": str(key_file)},
    }


def adapter_of(serde: dict[str, object]) -> str:
    return json.dumps({"type": "memory", "max_size_gb": 1, "serde": serde})


def told_by(serde: dict[str, object], caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the start of such an adapter says."""
    caplog.clear()
    make_adapter(parse_adapter(adapter_of(serde), "#1"), AdapterContext("memory"))
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("name", ["fp8", "aesgcm"])
def test_it_is_taken_and_told(
    name: str, serdes: dict[str, dict[str, object]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lmcache.serde")
    serde = serdes[name]
    assert told_by({**serde, "max_workers": 4}, caplog) == [f"serde {name}: max_workers 4 {_NO_EFFECT}"]
    assert told_by({**serde, "max_workers": 1}, caplog) == told_by(serde, caplog) == []


@pytest.mark.parametrize("name", ["fp8", "aesgcm"])
@pytest.mark.parametrize("given", [0, -1, 1.5, "4", True, None])
def test_what_is_no_number_of_workers(name: str, given: object, serdes: dict[str, dict[str, object]]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_adapter(adapter_of({**serdes[name], "max_workers": given}), "--l2-adapter #1")
    assert str(caught.value) == (
        f"--l2-adapter #1: serde {name}: max_workers must be a whole number of at least 1 (got {given!r})"
    )


def test_types_that_have_no_such_setting_say_so() -> None:
    with pytest.raises(ConfigError, match="serde zstd: unknown field 'max_workers'"):
        parse_adapter(adapter_of({"type": "zstd", "max_workers": 1}), "#1")
