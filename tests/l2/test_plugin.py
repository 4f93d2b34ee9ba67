"""Adapters from outside the package: made as they say, and told apart from what is none."""

from __future__ import annotations

import json

import pytest

from lmcache.core.sizes import GIB
from lmcache.errors import ConfigError
from lmcache.l2.base import AdapterContext
from lmcache.l2.registry import make_adapter, parse_adapter
from lmcache.testing.l2_backend import make_data, make_key
from lmcache.testing.l2_contract import L2AdapterContract
from lmcache.testing.l2_memory import MemoryBackend
from tests.l2 import plugin_example

MODULE = plugin_example.__name__


def make(class_name: str = "ShoutingAdapter", *, type: str = "plugin", module_path: str = MODULE, **others: object):
    given = {"type": type, "module_path": module_path, "class_name": class_name, **others}
    return make_adapter(parse_adapter(json.dumps(given), "#1"), AdapterContext(type))


class PluginBackend(MemoryBackend):
    def make(self, context, capacity_bytes):
        given = {
            "type": "plugin", "module_path": MODULE, "class_name": "ShoutingAdapter",
            "max_capacity_gb": capacity_bytes / GIB,
        }  # fmt: skip
        adapter = make_adapter(parse_adapter(json.dumps(given), "#1"), context)
        self._objects = adapter._objects
        return adapter


class TestPlugin(L2AdapterContract):
    @pytest.fixture
    def backend(self):
        return PluginBackend()


@pytest.mark.parametrize("type_name", ["plugin", "native_plugin"])
def test_a_plugin_gets_its_settings_as_they_are(type_name):
    adapter = make(type=type_name, adapter_params={"anything": [1]}, max_capacity_gb=0.5)
    assert adapter.settings == {"anything": [1]}
    assert (adapter.class_name, adapter.type_name) == ("ShoutingAdapter", type_name)
    assert adapter.usage().total_capacity_bytes == GIB // 2


def test_a_plugin_may_have_a_dataclass_of_settings():
    adapter = make(config_class_name="Settings", adapter_params={"greeting": "hello"})
    assert adapter.settings == plugin_example.Settings("hello")


def test_a_plugin_can_be_wrapped():
    adapter = make(serde={"type": "zstd"})
    adapter.open()
    from lmcache.l2.base import Source

    adapter.store(make_key(1), Source(memoryview(make_data(1))))
    assert bytes(adapter.load_whole(make_key(1))) == make_data(1)
    adapter.close()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"module_path": "no.such.module"}, "module_path 'no.such.module' cannot be imported: ModuleNotFoundError"),
        ({"module_path": "../x"}, "module_path '../x' cannot be imported: "),
        ({"module_path": ""}, "module_path must be a text that is not empty"),
        ({"class_name": "Nobody"}, f"class_name 'Nobody': module {MODULE} has no such class"),
        ({"class_name": "not_a_class"}, f"class_name 'not_a_class': module {MODULE} has no such class"),
        ({"class_name": "NoAdapter"}, "NoAdapter is not a subclass of lmcache.l2.base.L2Adapter"),
        (
            {"class_name": "Unfinished"},
            "Unfinished does not implement close, load, lookup, open, release, store, usage",
        ),
        ({"class_name": "Choosy"}, "this adapter wants a greeting"),
        ({"class_name": "Broken"}, "Broken(settings, context, capacity_bytes) failed: KeyError: 'greeting'"),
        ({"class_name": "WrongSignature"}, "capacity_bytes) failed: TypeError"),
        ({"adapter_params": [1]}, "adapter_params must be an object (got [1])"),
        ({"config_class_name": "Absent"}, "config_class_name 'Absent': module"),
        ({"config_class_name": "NoAdapter"}, "config_class_name 'NoAdapter' is not a dataclass"),
        ({"config_class_name": "Settings"}, "adapter_params: missing field 'greeting'"),
        (
            {"config_class_name": "Settings", "adapter_params": {"greetings": "x"}},
            "adapter_params: unknown field 'greetings'; did you mean 'greeting'?",
        ),
        ({"max_capacity_gb": -1}, "max_capacity_gb must be a number of at least 0 (got -1)"),
    ],
)
def test_what_is_no_plugin_is_refused(given, text):
    with pytest.raises(ConfigError) as caught:
        make(**given)
    assert text in str(caught.value)
