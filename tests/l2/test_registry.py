"""From JSON texts to adapters: what is accepted, and that each mistake is told with its place and remedy."""

from __future__ import annotations

import json
import types

import pytest

from lmcache.errors import ConfigError
from lmcache.l2 import registry
from lmcache.l2.base import AdapterContext, EvictionConfig
from lmcache.l2.memory.adapter import MockL2Adapter
from lmcache.l2.memory.config import MemoryConfig
from lmcache.l2.registry import make_adapter, parse_adapter, parse_adapters, type_names

MEMORY = {"type": "memory", "max_size_gb": 1}


def refusal(*texts: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_adapters(texts)
    return str(caught.value)


def test_a_full_text():
    given = {
        **MEMORY, "mock_bandwidth_gb": 2.5, "persist_enabled": False, "shared": True, "affinity_tag": "rack-1",
        "eviction": {"eviction_policy": "noop", "trigger_watermark": 0.5, "eviction_ratio": 0.1},
    }  # fmt: skip
    spec = parse_adapter(json.dumps(given), "#1")
    assert spec.settings == MemoryConfig(1, 2.5)
    assert spec.eviction == EvictionConfig("noop", 0.5, 0.1)
    assert (spec.type, spec.persist_enabled, spec.shared) == ("memory", False, True)
    assert type(make_adapter(spec, AdapterContext("memory"))) is MockL2Adapter


def test_several_keep_their_order():
    specs = parse_adapters([json.dumps(MEMORY), json.dumps({"type": "mock", "max_size_gb": 2})])
    assert [spec.type for spec in specs] == ["memory", "mock"]


def test_the_position_is_told():
    assert refusal(json.dumps(MEMORY), "nonsense").startswith("--l2-adapter #2: not valid JSON: ")


@pytest.mark.parametrize("text", ["[]", "5", "null", '"memory"'])
def test_something_that_is_no_object(text):
    assert refusal(text) == ('--l2-adapter #1: must be a JSON object, such as {"type": "memory", "max_size_gb": 1}')


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_json(constant):
    assert f"{constant} is not JSON" in refusal(f'{{"type": "memory", "max_size_gb": {constant}}}')


@pytest.mark.parametrize("text", ['{"max_size_gb": 1}', '{"type": 5}', '{"type": null}'])
def test_a_missing_type(text):
    assert refusal(text) == f"--l2-adapter #1: `type` is missing; known types: {', '.join(type_names())}"


def test_an_unknown_type():
    known = ", ".join(type_names())
    assert refusal('{"type": "nixl_store"}') == f"--l2-adapter #1: unknown type 'nixl_store'; known types: {known}"
    assert {"memory", "mock", "fault_inject", "plugin", "native_plugin"} <= set(type_names())


def test_an_unknown_field_is_told_with_the_nearest():
    assert "unknown field 'max_size'; did you mean 'max_size_gb'? (there are: max_size_gb, mock_bandwidth_gb)" in (
        refusal('{"type": "memory", "max_size": 1}')
    )
    assert "unknown field 'zzz' (there are: " in refusal('{"type": "memory", "max_size_gb": 1, "zzz": 1}')


def test_a_missing_field():
    assert refusal('{"type": "memory"}') == "--l2-adapter #1: missing field 'max_size_gb'"
    assert "missing field 'module_path', 'class_name'" in refusal('{"type": "plugin"}')


@pytest.mark.parametrize("size", [0, -1, True, '"1"', "null", "[]"])
def test_a_wrong_size(size):
    text = f'{{"type": "memory", "max_size_gb": {str(size).lower()}}}'
    assert "max_size_gb must be a number greater than 0 (got " in refusal(text)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("persist_enabled", "yes", "persist_enabled must be true or false (got 'yes')"),
        ("shared", 1, "shared must be true or false (got 1)"),
        ("eviction", "LRU", "`eviction` must be an object with an `eviction_policy`"),
        ("eviction", {"trigger_watermark": 0.5}, "`eviction` must be an object with an `eviction_policy`"),
        ("eviction", {"eviction_policy": "SIEVE"}, "eviction_policy must be one of "),
        ("eviction", {"eviction_policy": "LRU", "evict_ratio": 1}, "did you mean 'eviction_ratio'?"),
        ("eviction", {"eviction_policy": "LRU", "trigger_watermark": 0}, "trigger_watermark must be above 0"),
        ("eviction", {"eviction_policy": "LRU", "eviction_ratio": 1.5}, "eviction_ratio must be above 0 and at most 1"),
    ],
)
def test_wrong_common_fields(field, value, expected):
    assert expected in refusal(json.dumps({**MEMORY, field: value}))


class _EntryPoint:
    def __init__(self, name: str, module: types.ModuleType | None) -> None:
        self.name = name
        self._module = module

    def load(self) -> types.ModuleType:
        if self._module is None:
            raise ImportError("No module named 'gone'")
        return self._module


@pytest.fixture
def published(monkeypatch):
    """`published(module)`: as if an installed package had it behind an entry point."""

    def publish(module: types.ModuleType | None) -> None:
        points = [_EntryPoint("extra", module)]
        monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "lmcache.l2" else [])
        registry.adapter_modules.cache_clear()

    yield publish
    registry.adapter_modules.cache_clear()


def _module(*names: str) -> types.ModuleType:
    module = types.ModuleType("some_package")
    module.TYPE_NAMES = names
    module.Config = MemoryConfig
    module.make = MockL2Adapter
    return module


def test_an_adapter_of_another_package(published):
    published(_module("elsewhere"))
    assert "elsewhere" in type_names()
    spec = parse_adapter('{"type": "elsewhere", "max_size_gb": 1}', "#1")
    assert type(make_adapter(spec, AdapterContext("elsewhere"))) is MockL2Adapter


def test_an_entry_point_that_cannot_be_used_is_named(published):
    published(None)
    with pytest.raises(
        ConfigError, match=r"entry point 'extra' of lmcache\.l2 cannot be loaded: ImportError: No module"
    ):
        type_names()
    published(types.ModuleType("some_package"))
    with pytest.raises(ConfigError, match=r"entry point 'extra' of lmcache\.l2 has no TYPE_NAMES, Config, make"):
        type_names()


def test_two_owners_of_a_type_are_refused(published):
    published(_module("memory"))
    with pytest.raises(ConfigError, match=r"type 'memory' is defined by lmcache\.l2\.memory and by some_package"):
        type_names()


def test_knowing_all_types_imports_no_library(start_child):
    """`lmcache --help` lists them, and must not wait for clients of storage services."""
    child = start_child(
        "import sys; from lmcache.l2.registry import type_names; type_names();"
        "print(sorted({'obstore', 'redis', 'zstandard', 'cryptography', 'torch'} & set(sys.modules)))"
    )
    assert child.read_line() == "[]"
