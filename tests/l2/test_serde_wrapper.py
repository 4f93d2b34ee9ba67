"""Serdes around an adapter: the contract through each lossless one, and what wrapping changes."""

from __future__ import annotations

import json

import pytest

from lmcache.errors import ConfigError, CorruptObjectError, ListingUnsupportedError
from lmcache.l2.base import AdapterContext, L2Adapter, Source, StoreStatus, Usage
from lmcache.l2.memory.adapter import MockL2Adapter
from lmcache.l2.memory.config import MemoryConfig
from lmcache.l2.registry import make_adapter, parse_adapter, parse_serde
from lmcache.l2.serde_wrapper import SerdeL2AdapterWrapper, wrap
from lmcache.serde.raw import RawSerde
from lmcache.testing.l2_backend import Bench, make_data, make_key
from lmcache.testing.l2_contract import L2AdapterContract
from lmcache.testing.l2_machine import l2_machine
from lmcache.testing.l2_memory import MemoryBackend

LAYOUT = json.dumps(
    {
        "format": "NL_X_NB_NH_BS_HS",
        "block_size": 16,
        "groups": [{"dtype": "torch.bfloat16", "shape": [2, 16, 8], "layers": 4, "page": 512}],
    }
)
OBJECT_BYTES = 4 * 512 * 3


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text("first " + "0f" * 32 + "\n")
    path.chmod(0o600)
    return path


class WrappedBackend(MemoryBackend):
    def __init__(self, *serdes: dict[str, object]) -> None:
        super().__init__()
        self._specs = parse_serde(list(serdes))

    def make(self, context: AdapterContext, capacity_bytes: int) -> L2Adapter:
        return wrap(super().make(context, capacity_bytes), self._specs)


class TestRaw(L2AdapterContract):
    @pytest.fixture
    def backend(self):
        return WrappedBackend({"type": "raw"})


class TestZstd(L2AdapterContract):
    @pytest.fixture
    def backend(self):
        return WrappedBackend({"type": "zstd"})


class TestAesGcm(L2AdapterContract):
    @pytest.fixture
    def backend(self, key_file):
        return WrappedBackend({"type": "aesgcm", "key_file": str(key_file)})


class TestZstdInsideAesGcm(L2AdapterContract):
    @pytest.fixture
    def backend(self, key_file):
        return WrappedBackend({"type": "zstd"}, {"type": "aesgcm", "key_file": str(key_file)})


TestMachine = l2_machine(lambda: WrappedBackend({"type": "zstd"}, {"type": "raw"})).TestCase


@pytest.fixture
def wrapped(request):
    """`wrapped(*serdes)`: a bench with an adapter inside these."""
    benches: list[Bench] = []

    def make(*serdes: dict[str, object]) -> Bench:
        backend = WrappedBackend(*serdes)
        backend.layout = LAYOUT
        benches.append(Bench(backend))
        return benches[-1]

    yield make
    for bench in benches:
        bench.adapter.close()


def compressible(num_bytes: int = OBJECT_BYTES) -> bytes:
    return bytes(position % 7 if position % 2 else 64 for position in range(num_bytes))


def test_what_compresses_takes_less_room(wrapped):
    bench = wrapped({"type": "zstd"})
    bench.store(make_key(1), compressible())
    assert bench.adapter.usage().total_bytes_used < OBJECT_BYTES / 2
    assert bench.load(make_key(1), OBJECT_BYTES).data == compressible()


def test_a_lossy_object_is_marked(wrapped):
    bench = wrapped({"type": "int8"}, {"type": "zstd"})
    bench.store(make_key(1), compressible())
    answer = bench.load(make_key(1), OBJECT_BYTES)
    assert answer.is_lossy
    assert answer.data != compressible()


@pytest.mark.parametrize("serde", ["fp8", "int8"])
def test_what_a_lossy_serde_does_not_understand_is_stored_as_it_is(wrapped, serde):
    bench = wrapped({"type": serde})
    bench.backend.layout = ""
    bench.store(make_key(1), compressible())
    answer = bench.load(make_key(1), OBJECT_BYTES)
    assert (answer.data, answer.is_lossy) == (compressible(), False)


@pytest.mark.parametrize("serde", ["fp8", "int8"])
def test_values_that_are_not_finite_are_stored_as_they_are(wrapped, serde):
    bench = wrapped({"type": serde})
    data = bytes(OBJECT_BYTES - 2) + b"\xc0\x7f"
    bench.store(make_key(1), data)
    answer = bench.load(make_key(1), OBJECT_BYTES)
    assert (answer.data, answer.is_lossy) == (data, False)


class _Slow(RawSerde):
    """Others take the source back while it is encoded."""

    is_taken_back = False

    def encode(self, data, layout, key):
        self.is_taken_back = True
        return super().encode(data, layout, key)


def test_a_source_taken_back_while_it_is_encoded_is_not_stored():
    serde, memory = _Slow(), MockL2Adapter(MemoryConfig(1), AdapterContext("memory"))
    adapter = SerdeL2AdapterWrapper(memory, serde)
    source = Source(memoryview(make_data(1)), "", lambda: not serde.is_taken_back)
    assert adapter.store(make_key(1), source) is StoreStatus.GONE
    assert memory.num_objects == 0


def test_an_encrypted_object_cannot_be_read_or_swapped(wrapped, key_file):
    bench = wrapped({"type": "aesgcm", "key_file": str(key_file)})
    for number in (1, 2):
        bench.store(make_key(number), compressible())
    inner = bench.adapter.inner
    assert compressible()[:64] not in bench.backend.content(make_key(1))
    # The adapter inside holds it to be sound: only the serde can tell that it is another's.
    foreign = bytes(inner.load_whole(make_key(2)))
    inner.delete([make_key(1)])
    inner.store(make_key(1), Source(memoryview(foreign)))
    with pytest.raises(CorruptObjectError, match="altered"):
        bench.load(make_key(1), OBJECT_BYTES)
    assert not bench.is_held(make_key(1))
    assert bench.load(make_key(2), OBJECT_BYTES).data == compressible()


def test_keys_are_rotated_by_replacing_the_file(wrapped, key_file):
    bench = wrapped({"type": "aesgcm", "key_file": str(key_file)})
    bench.store(make_key(1), compressible())
    old = key_file.read_text()
    key_file.write_text("second " + "aa" * 16 + "\n" + old)
    bench.store(make_key(2), compressible())
    assert bench.adapter.report_status()["serdes"] == [{"type": "aesgcm", "key_id": "second", "num_keys": 2}]
    assert bench.load(make_key(1), OBJECT_BYTES).data == compressible()
    key_file.write_text("second " + "aa" * 16 + "\n")
    assert bench.load(make_key(2), OBJECT_BYTES).data == compressible()
    with pytest.raises(CorruptObjectError, match="'first'"):
        bench.load(make_key(1), OBJECT_BYTES)
    assert not bench.is_held(make_key(1))
    assert bench.store(make_key(1), compressible()) is StoreStatus.STORED


def test_a_leased_object_that_cannot_be_decoded_is_removed(wrapped, key_file):
    bench = wrapped({"type": "aesgcm", "key_file": str(key_file)})
    bench.store(make_key(1), compressible())
    bench.adapter.lookup([make_key(1)])
    key_file.write_text("other " + "aa" * 16 + "\n")
    with pytest.raises(CorruptObjectError):
        bench.load(make_key(1), OBJECT_BYTES)
    assert bench.adapter.lookup([make_key(1)]) == [False]


@pytest.mark.parametrize("serdes", [[{"type": "raw"}], [{"type": "zstd"}], [{"type": "raw"}, {"type": "zstd"}]])
@pytest.mark.parametrize("num_bytes", [64, 65, 4096])
def test_without_the_serde_nothing_is_taken_for_kv(wrapped, serdes, num_bytes):
    bench = wrapped(*serdes)
    bench.store(make_key(1), make_data(1, num_bytes))
    innermost = bench.adapter
    while hasattr(innermost, "inner"):
        innermost = innermost.inner
    assert len(innermost.load_whole(make_key(1))) % 2 == 1


@pytest.mark.parametrize("other", [{"type": "raw"}, {"type": "int8"}])
def test_an_object_of_another_serde_is_a_miss(wrapped, other):
    bench = wrapped({"type": "zstd"})
    bench.store(make_key(1), compressible())
    wrapped_anew = wrap(bench.adapter.inner, parse_serde(other))
    with pytest.raises(CorruptObjectError, match="stored through the serde 'zstd'"):
        wrapped_anew.load(make_key(1), memoryview(bytearray(OBJECT_BYTES)))
    assert bench.adapter.num_objects == 0


def test_an_object_without_a_serde_is_a_miss(wrapped):
    bench = wrapped({"type": "zstd"})
    bench.adapter.inner.store(make_key(1), Source(memoryview(compressible())))
    with pytest.raises(CorruptObjectError, match="without the serde zstd"):
        bench.load(make_key(1), OBJECT_BYTES)


@pytest.mark.parametrize("position", range(78))
def test_a_header_that_lies_is_a_miss(wrapped, position):
    """The adapter inside vouches for what it holds; the serde must stand what it was given."""
    bench = wrapped({"type": "zstd"})
    bench.store(make_key(1), compressible())
    inner = bench.adapter.inner
    content = bytearray(inner.load_whole(make_key(1)))
    content[position] ^= 0xFF
    inner.delete([make_key(1)])
    inner.store(make_key(1), Source(memoryview(content)))
    target = bytearray(OBJECT_BYTES)
    try:
        bench.adapter.load(make_key(1), memoryview(target))
    except CorruptObjectError:
        assert not bench.is_held(make_key(1))


def test_the_status_says_how_it_is_wrapped(wrapped):
    bench = wrapped({"type": "fp8"}, {"type": "zstd", "level": 3})
    status = bench.adapter.report_status()
    assert status["serde_wrapped"] is True
    assert status["serdes"] == [{"type": "fp8", "is_lossy": True}, {"type": "zstd", "level": 3}]
    assert status["type"] == bench.adapter.class_name == "MockL2Adapter"
    assert bench.adapter.supported_operations == ("status", "resize")
    assert bench.adapter.reconfigure("resize", {"size": "1GB"})["status"] == "ok"


class _NoListing(MockL2Adapter):
    supports_listing = False

    def list_l2_keys(self, model_name, page_size, page_token):
        return L2Adapter.list_l2_keys(self, model_name, page_size, page_token)


def test_the_adapter_inside_says_what_it_cannot():
    adapter = wrap(_NoListing(MemoryConfig(1), AdapterContext("memory")), parse_serde({"type": "raw"}))
    assert not adapter.supports_listing
    with pytest.raises(ListingUnsupportedError, match="_NoListing does not implement list_l2_keys"):
        adapter.list_l2_keys(None, 10, None)


class _KnownLengthOnly(L2Adapter):
    def open(self): ...
    def store(self, key, source): ...
    def lookup(self, keys): ...
    def release(self, keys): ...
    def load(self, key, target): ...
    def close(self): ...

    def usage(self):
        return Usage()


def test_what_cannot_be_wrapped_is_refused():
    with pytest.raises(ConfigError, match="_KnownLengthOnly: it does not implement load_whole"):
        wrap(_KnownLengthOnly(AdapterContext("x")), parse_serde({"type": "raw"}))
    memory = MockL2Adapter(MemoryConfig(1), AdapterContext("memory"))
    with pytest.raises(ConfigError, match="int8 is lossy and must come first"):
        wrap(memory, parse_serde([{"type": "zstd"}, {"type": "int8"}]))


@pytest.mark.parametrize(
    ("serde", "text"),
    [
        ("zstd", "`serde` must be an object with a `type`"),
        ({"level": 1}, "`serde` must be an object with a `type`"),
        ({"type": "gzip"}, "unknown serde type 'gzip'; known types: raw, zstd, fp8, int8, aesgcm"),
        ({"type": "zstd", "lvl": 1}, "serde zstd: unknown field 'lvl'; did you mean 'level'"),
        ({"type": "zstd", "level": 20}, "level must be a whole number from 1 to 19"),
        ({"type": "zstd", "level": True}, "level must be a whole number from 1 to 19"),
        ({"type": "fp8", "fp8_dtype": "float8_e5m2"}, "fp8_dtype must be 'float8_e4m3fn'"),
        ({"type": "aesgcm"}, "serde aesgcm: missing field 'key_file'"),
        ({"type": "aesgcm", "key_file": ""}, "key_file must be the path of a file"),
    ],
)
def test_wrong_settings_are_refused(serde, text):
    with pytest.raises(ConfigError, match=f"#1: .*{text}"):
        parse_adapter(json.dumps({"type": "memory", "max_size_gb": 1, "serde": serde}), "--l2-adapter #1")


def test_the_settings_of_an_adapter_name_its_serdes(key_file):
    serdes = [{"type": "zstd"}, {"type": "aesgcm", "key_file": str(key_file)}]
    spec = parse_adapter(json.dumps({"type": "memory", "max_size_gb": 1, "serde": serdes}), "#1")
    adapter = make_adapter(spec, AdapterContext("memory"))
    assert [entry["type"] for entry in adapter.report_status()["serdes"]] == ["zstd", "aesgcm"]
