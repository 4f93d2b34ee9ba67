"""Serdes on KV values: lossless ones give back every byte, lossy ones keep to what they promise."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.errors import ConfigError, CorruptObjectError
from lmcache.serde import registry
from lmcache.serde.floats import STORED_AS, from_float32, to_float32
from lmcache.serde.registry import SERDE_NAMES, serde_module
from lmcache.serde.segments import parse_layout
from lmcache.testing.l2_backend import make_key

KEY = make_key(1)
SHAPE = (3, 16, 8)  # heads, tokens, content
NUM_LAYERS, NUM_BLOCKS = 2, 4
# Values of a type are rounded once more when they are decoded: half a unit in the last place.
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-23}


def layout_of(dtype: str, shape: tuple[int, ...] = SHAPE, num_layers: int = NUM_LAYERS) -> KVLayout:
    page_bytes = int(np.prod(shape)) * STORED_AS[dtype].itemsize
    names = tuple(f"layer.{number}" for number in range(num_layers))
    return KVLayout(
        16, 100, (KernelGroup(names, page_bytes, f"torch.{dtype}", (100, *shape)),), "NL_X_NB_NH_BS_HS", "avx512"
    )


def as_bytes(values: np.ndarray, dtype: str) -> bytes:
    stored = np.empty(values.shape, STORED_AS[dtype])
    from_float32(values.astype(np.float32), dtype, stored)
    return stored.tobytes()


def as_values(data: bytes, dtype: str) -> np.ndarray:
    return to_float32(np.frombuffer(data, STORED_AS[dtype]), dtype).astype(np.float64)


def kv_values(seed: int = 0) -> np.ndarray:
    """Normal values whose channels differ in size by orders of magnitude, as those of real keys do."""
    generator = np.random.default_rng(seed)
    channels = np.exp(generator.normal(0, 2, (NUM_LAYERS, 1, SHAPE[0], 1, SHAPE[2])))
    return generator.normal(0, 1, (NUM_LAYERS, NUM_BLOCKS, *SHAPE)) * channels


def serde_of(name: str, **settings: object):
    module = serde_module(name)
    return module.make(module.Config(**settings))


def round_trip(serde, data: bytes, layout: str) -> tuple[bytes, int]:
    """What comes back, and the size it had meanwhile. The parameters survive JSON."""
    encoded = serde.encode(memoryview(data), layout, KEY)
    assert encoded is not None
    target = bytearray(len(data))
    parameters = json.loads(json.dumps(encoded.parameters))
    serde.decode(memoryview(bytes(encoded.payload)), parameters, memoryview(target), KEY)
    return bytes(target), len(encoded.payload)


@pytest.mark.parametrize("dtype", STORED_AS)
def test_zstd_gives_back_every_byte_and_saves_room(dtype):
    data = as_bytes(kv_values(), dtype)
    decoded, num_bytes = round_trip(serde_of("zstd"), data, layout_of(dtype).describe())
    assert decoded == data
    assert num_bytes < 0.98 * len(data)


def test_planes_are_what_saves_room():
    data = as_bytes(np.random.default_rng(0).normal(0, 1, 1 << 18), "bfloat16")
    layout = layout_of("bfloat16", (16, 256), 1).describe()
    with_planes = round_trip(serde_of("zstd"), data, layout)[1]
    without = round_trip(serde_of("zstd"), data, "")[1]
    assert with_planes < 0.95 * without
    assert len(data) / with_planes > 1.35


@given(st.binary(min_size=1, max_size=2000), st.sampled_from(["", "{}", "nonsense", layout_of("bfloat16").describe()]))
def test_zstd_on_any_bytes(data, layout):
    serde = serde_of("zstd")
    encoded = serde.encode(memoryview(data), layout, KEY)
    if encoded is not None:
        assert len(encoded.payload) < len(data)
        assert round_trip(serde, data, layout)[0] == data


def test_zstd_over_groups_of_different_types():
    wide, narrow = layout_of("float32").groups[0], layout_of("bfloat16").groups[0]
    layout = KVLayout(16, 100, (wide, narrow), "X", "").describe()
    data = as_bytes(kv_values(), "float32") + as_bytes(kv_values(1), "bfloat16")
    encoded = serde_of("zstd").encode(memoryview(data), layout, KEY)
    assert [run[1] for run in encoded.parameters["runs"]] == [4, 2]
    assert round_trip(serde_of("zstd"), data, layout)[0] == data


def channel_peaks(values: np.ndarray) -> np.ndarray:
    """The largest magnitude of each channel: one layer, one head, one place in the content."""
    shaped = np.abs(values.reshape(NUM_LAYERS, NUM_BLOCKS, *SHAPE))
    return np.broadcast_to(shaped.max(axis=(1, 3), keepdims=True), shaped.shape).reshape(-1)


@pytest.mark.parametrize("dtype", STORED_AS)
@pytest.mark.parametrize("seed", range(3))
def test_int8_keeps_its_bound(dtype, seed):
    data = as_bytes(kv_values(seed), dtype)
    decoded, num_bytes = round_trip(serde_of("int8"), data, layout_of(dtype).describe())
    before, after = as_values(data, dtype), as_values(decoded, dtype)
    peaks = channel_peaks(before)
    assert (np.abs(after - before) <= peaks / 254 * 1.0001 + np.abs(after) * ROUNDING[dtype]).all()
    assert np.sqrt(np.mean(((after - before) / peaks) ** 2)) < 0.004
    assert num_bytes < len(data) / STORED_AS[dtype].itemsize * 1.07


@pytest.mark.parametrize("dtype", STORED_AS)
@pytest.mark.parametrize("seed", range(3))
def test_fp8_keeps_its_bound(dtype, seed):
    data = as_bytes(kv_values(seed), dtype)
    decoded, num_bytes = round_trip(serde_of("fp8"), data, layout_of(dtype).describe())
    before, after = as_values(data, dtype), as_values(decoded, dtype)
    peaks = channel_peaks(before)
    bound = np.where(np.abs(before) >= peaks / 28672, np.abs(before) * 0.063, peaks / 458752 * 1.001)
    assert (np.abs(after - before) <= bound + np.abs(after) * ROUNDING[dtype]).all()
    assert np.sqrt(np.sum((after - before) ** 2) / np.sum(before**2)) < 0.03
    assert num_bytes < len(data) / STORED_AS[dtype].itemsize * 1.07


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", STORED_AS)
@pytest.mark.parametrize("size", ["zeros", "tiny", "huge"])
def test_lossy_serdes_at_the_ends_of_a_type(name, dtype, size):
    largest = {"bfloat16": 3.3895e38, "float16": 65504.0, "float32": 3.4e38}[dtype]
    factor = {"zeros": 0.0, "tiny": 1e-44, "huge": largest}[size]
    values = np.random.default_rng(0).uniform(-1, 1, (NUM_LAYERS, NUM_BLOCKS, *SHAPE)) * factor
    values[0, 0, 0, 0, 0] = factor
    data = as_bytes(values, dtype)
    decoded = as_values(round_trip(serde_of(name), data, layout_of(dtype).describe())[0], dtype)
    assert np.isfinite(decoded).all()
    assert (np.abs(decoded - as_values(data, dtype)) <= max(factor * 0.07, 1e-40)).all()


def test_codes_of_fp8_are_those_of_the_standard():
    """OCP 8-bit floating point, e4m3: 0x7E is 448, 0x01 is 2**-9, 0x08 is 2**-6, 0x7F is not a number."""
    fp8 = serde_module("fp8")
    values = fp8._decode_table()
    expected = {0x00: 0.0, 0x01: 2**-9, 0x07: 7 * 2**-9, 0x08: 2**-6, 0x38: 1.0, 0x3C: 1.5, 0x7E: 448.0, 0xB8: -1.0}
    assert {code: float(values[code]) for code in expected} == expected
    assert np.isnan(values[0x7F])
    assert np.isnan(values[0xFF])
    codes = fp8._encode_table()
    finite = [code for code in range(256) if np.isfinite(values[code])]
    assert [int(codes[np.float16(values[code]).view(np.uint16)]) for code in finite] == finite
    halfway = {1.0625: 0x38, 1.1875: 0x3A, -1.0625: 0xB8, 1.07: 0x39, 460.0: 0x7E}
    assert {value: int(codes[np.float16(value).view(np.uint16)]) for value in halfway} == halfway


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_bfloat16_is_rounded_to_the_nearest(numbers):
    values = np.array(numbers, np.float32)
    values = values[np.abs(values) < 3.3e38]
    stored = np.empty(values.shape, np.uint16)
    from_float32(values, "bfloat16", stored)
    back = to_float32(stored, "bfloat16").astype(np.float64)
    assert (np.abs(back - values) <= np.maximum(np.abs(values.astype(np.float64)) * 2.0**-8, 2.0**-134)).all()
    exact = np.empty(values.shape, np.uint16)
    from_float32(back.astype(np.float32), "bfloat16", exact)
    assert (exact == stored).all()


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("shape", [(2, 8, 16, 4), (16, 40), (5, 7, 11)])
def test_lossy_serdes_on_pages_of_any_shape(name, shape):
    values = np.random.default_rng(0).normal(0, 1, (NUM_LAYERS, NUM_BLOCKS, *shape))
    data = as_bytes(values, "bfloat16")
    decoded = as_values(round_trip(serde_of(name), data, layout_of("bfloat16", shape).describe())[0], "bfloat16")
    assert np.sqrt(np.mean((decoded - values.reshape(-1)) ** 2)) < 0.05


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize(
    "change",
    [
        lambda described: {},
        lambda described: [],
        lambda described: {**described, "groups": []},
        lambda described: {**described, "groups": [{**described["groups"][0], "dtype": "torch.uint8"}]},
        lambda described: {**described, "groups": [{**described["groups"][0], "page": 770}]},
        lambda described: {**described, "groups": [{**described["groups"][0], "shape": []}]},
        lambda described: {**described, "groups": [{**described["groups"][0], "shape": "16"}]},
        lambda described: {**described, "groups": [{**described["groups"][0], "layers": 0}]},
        lambda described: {**described, "groups": [{**described["groups"][0], "layers": 7}]},
    ],
)
def test_a_layout_that_is_not_understood_is_left_alone(name, change):
    described = json.loads(layout_of("bfloat16").describe())
    data = as_bytes(kv_values(), "bfloat16")
    assert serde_of(name).encode(memoryview(data), json.dumps(change(described)), KEY) is None


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_what_gains_nothing_is_left_alone(name):
    """A page of one axis: nothing but the few blocks of an object share a scale."""
    data = as_bytes(np.ones((NUM_LAYERS, NUM_BLOCKS, 640)), "bfloat16")
    assert serde_of(name).encode(memoryview(data), layout_of("bfloat16", (640,)).describe(), KEY) is None


def test_segments_follow_the_groups():
    segments = parse_layout(layout_of("bfloat16").describe(), NUM_BLOCKS * layout_of("bfloat16").block_bytes)
    assert [(found.dtype, found.num_layers, found.num_blocks, found.shape) for found in segments] == [
        ("bfloat16", NUM_LAYERS, NUM_BLOCKS, SHAPE)
    ]
    assert parse_layout(layout_of("bfloat16").describe(), 1) is None


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 40) | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["runs", "plans", "nonce"]), inner),
    max_leaves=12,
)


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text("only " + "11" * 16)
    path.chmod(0o600)
    return path


@pytest.fixture(params=[name for name in SERDE_NAMES if name != "raw"])
def serde(request, key_file):
    return serde_of(request.param, **({"key_file": str(key_file)} if request.param == "aesgcm" else {}))


@given(data=st.data())
def test_wrong_parameters_are_a_corrupt_object(data):
    name = data.draw(st.sampled_from(["zstd", "int8", "fp8"]))
    parameters = data.draw(st.dictionaries(st.sampled_from(["runs", "plans"]), _json))
    with pytest.raises(CorruptObjectError):
        serde_of(name).decode(memoryview(b"payload" * 10), parameters, memoryview(bytearray(100)), KEY)


def test_damaged_payloads_are_corrupt_or_other_values_but_no_accident(serde):
    data = as_bytes(kv_values(), "bfloat16")
    encoded = serde.encode(memoryview(data), layout_of("bfloat16").describe(), KEY)
    payload = bytes(encoded.payload)
    target = memoryview(bytearray(len(data)))
    for wrong in (payload[:-1], payload + b"x", b"", payload[:10]):
        with pytest.raises(CorruptObjectError):
            serde.decode(memoryview(wrong), encoded.parameters, target, KEY)
    with pytest.raises(CorruptObjectError):
        serde.decode(memoryview(payload), encoded.parameters, target[:-2], KEY)
    with pytest.raises(CorruptObjectError):
        serde.decode(memoryview(payload), {}, target, KEY)


def test_a_missing_library_is_named(monkeypatch):
    def absent(name: str):
        raise ModuleNotFoundError("No module named 'zstandard'", name="zstandard")

    monkeypatch.setattr(registry.importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"needs the library zstandard, .*pip install 'lmcache\[serde\]'"):
        serde_module("zstd")
