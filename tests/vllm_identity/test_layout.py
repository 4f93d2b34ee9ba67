"""Blocks that go through our regions arrive byte for byte, in each physical order vLLM knows."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from lmcache.core.layout import KVLayout
from lmcache.errors import DeclinedError
from lmcache.kv_copy.cpu import CpuCopier
from tests.vllm_identity.conftest import MakeConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

NUM_BLOCKS = 7
ORDERS = {
    "LBHNC": "NL_X_NB_NH_BS_HS",
    "LBNHC": "NL_X_NB_BS_NH_HS",
    "LHBNC": "NL_X_NH_NB_BS_HS",
    "BLHNC": "NB_NL_NH_BS_HS",
    "BLNHC": "NB_NL_BS_NH_HS",
    "BHLNC": "NB_NH_NL_BS_HS",
}


def _full(**changes: Any) -> KVCacheSpec:
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    values = {"block_size": 32, "num_kv_heads": 3, "head_size": 16, "dtype": torch.bfloat16}
    return FullAttentionSpec(**(values | changes))


def _mla() -> KVCacheSpec:
    from vllm.v1.kv_cache_interface import MLAAttentionSpec

    return MLAAttentionSpec(block_size=16, num_kv_heads=1, head_size=72, dtype=torch.bfloat16)


def _mixed() -> KVCacheSpec:
    """Wide and narrow layers, as they come: vLLM lays out each kind together."""
    from vllm.v1.kv_cache_interface import UniformTypeKVCacheSpecs

    specs = {f"layers.{index}": _full(head_size=32 if index % 2 else 16) for index in range(4)}
    return UniformTypeKVCacheSpecs(block_size=32, kv_cache_specs=specs)


@dataclasses.dataclass
class Engine:
    """vLLM's own configuration and allocation of a KV cache."""

    vllm_config: VllmConfig
    kv_cache_config: KVCacheConfig
    kv_caches: dict[str, torch.Tensor]

    def describe(self) -> tuple[KVLayout, list[np.ndarray]]:
        from lmcache.integration.vllm.layout import describe_layout

        return describe_layout(self.kv_caches, self.vllm_config, self.kv_cache_config)

    def fill(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for cache in self.kv_caches.values():
            pattern = torch.randint(-(2**15), 2**15, cache.shape, generator=generator, dtype=torch.int16)
            cache.view(torch.int16).copy_(pattern)

    def block(self, name: str, block: int) -> torch.Tensor:
        """What vLLM's kernels see of one layer and block, kernel blocks and all."""
        cache = self.kv_caches[name].view(torch.int16)
        return cache.unflatten(0, (NUM_BLOCKS, -1))[block]


def _engine(base: VllmConfig, order: str, spec: KVCacheSpec, kernel_block_size: int | None = None) -> Engine:
    from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec
    from vllm.v1.kv_cache_layout import KVCacheLayout
    from vllm.v1.worker.utils import allocate_kv_cache

    config = copy.copy(base)
    config.cache_config = copy.copy(base.cache_config)
    config.cache_config.kv_cache_layout = order
    names = list(getattr(spec, "kv_cache_specs", [f"layers.{index}" for index in range(3)]))
    layers = 1 if hasattr(spec, "kv_cache_specs") else len(names)
    memory = NUM_BLOCKS * layers * spec.page_size_bytes
    kv_cache_config = get_kv_cache_config_from_groups(config, [KVCacheGroupSpec(names, spec)], memory)
    assert kv_cache_config.num_blocks == NUM_BLOCKS
    sizes = None if kernel_block_size is None else [kernel_block_size]
    caches = allocate_kv_cache(kv_cache_config, torch.device("cpu"), KVCacheLayout[order], sizes)
    return Engine(config, kv_cache_config, caches)


CASES = [
    *[(order, "full", None, 3 if order == "LHBNC" else 1) for order in ORDERS],
    ("LBHNC", "mla", None, 1),
    ("BLHNC", "mla", None, 1),
    ("LBHNC", "mixed", None, 2),
    ("BLHNC", "mixed", None, 1),
    ("LBHNC", "full", 16, 1),
    ("LBNHC", "full", 8, 1),
]


@pytest.mark.parametrize(("order", "kind", "kernel_block_size"), [case[:3] for case in CASES])
def test_blocks_arrive_byte_for_byte(
    make_config: MakeConfig, order: str, kind: str, kernel_block_size: int | None
) -> None:
    spec = {"full": _full, "mla": _mla, "mixed": _mixed}[kind]()
    source, target = (_engine(make_config(), order, spec, kernel_block_size) for _ in range(2))
    (layout, regions), (other, target_regions) = source.describe(), target.describe()
    assert layout == other
    source.fill(1)  # after the regions were made: they are the engine's memory, not a copy of it
    moves = {5: 2, 0: 6, 3: 3}
    slot = np.zeros(len(moves) * layout.block_bytes, dtype=np.uint8)
    CpuCopier(regions).gather(list(moves), slot)
    CpuCopier(target_regions).scatter(slot, 0, list(moves.values()))
    for name in source.kv_caches:
        for block in range(NUM_BLOCKS):
            origin = next((old for old, new in moves.items() if new == block), None)
            expected = torch.zeros_like(source.block(name, 0)) if origin is None else source.block(name, origin)
            assert torch.equal(target.block(name, block), expected), (name, block)


@pytest.mark.parametrize(("order", "kind", "kernel_block_size", "num_regions"), CASES)
def test_regions_hold_all_layers_and_no_more(
    make_config: MakeConfig, order: str, kind: str, kernel_block_size: int | None, num_regions: int
) -> None:
    spec = {"full": _full, "mla": _mla, "mixed": _mixed}[kind]()
    engine = _engine(make_config(), order, spec, kernel_block_size)
    layout, regions = engine.describe()
    assert len(regions) == (1 if order == "LHBNC" else num_regions)
    assert sum(region.nbytes for region in regions) == engine.kv_cache_config.kv_cache_tensors[0].size
    assert layout.block_bytes == sum(region.shape[0] * region.shape[2] for region in regions)
    assert all(region.shape[1] == layout.num_blocks == NUM_BLOCKS for region in regions)
    assert layout.block_size == spec.block_size
    assert layout.num_layers == len(engine.kv_caches)


def test_a_page_reads_as_vllm_wrote_it(make_config: MakeConfig) -> None:
    engine = _engine(make_config(), "LBHNC", _full())
    _, (region,) = engine.describe()
    engine.fill(2)
    for index, name in enumerate(engine.kv_caches):
        for block in range(NUM_BLOCKS):
            assert region[index, block].tobytes() == engine.block(name, block).contiguous().numpy().tobytes()


def test_each_order_has_its_name_and_identity(make_config: MakeConfig) -> None:
    layouts = {order: _engine(make_config(), order, _full()).describe()[0] for order in ORDERS}
    assert {order: layout.format_name for order, layout in layouts.items()} == ORDERS
    assert len({str(layout.identity()) for layout in layouts.values()}) == len(ORDERS)


def test_identity_follows_block_size_heads_and_dtype(make_config: MakeConfig) -> None:
    specs = [
        _full(),
        _full(block_size=64),
        _full(num_kv_heads=1),
        _full(dtype=torch.float16),
        _full(head_size=32),
        _mla(),
    ]
    identities = {str(_engine(make_config(), "LBHNC", spec).describe()[0].identity()) for spec in specs}
    assert len(identities) == len(specs)


def test_the_order_of_registration_does_not_count(make_config: MakeConfig) -> None:
    engine = _engine(make_config(), "LBHNC", _full())
    expected = engine.describe()[0]
    engine.kv_caches = dict(reversed(engine.kv_caches.items()))
    assert engine.describe()[0] == expected


def test_layers_that_share_anothers_kv_are_copied_once(make_config: MakeConfig) -> None:
    engine = _engine(make_config(), "LBHNC", _full())
    expected = engine.describe()[0]
    engine.kv_caches["layers.3"] = engine.kv_caches["layers.1"]
    assert engine.describe()[0] == expected


def test_mla_is_told_by_the_configuration_and_has_no_heads(make_config: MakeConfig) -> None:
    engine = _engine(make_config(), "LBHNC", _mla())

    class MlaModel:
        use_mla = True

    engine.vllm_config.model_config = MlaModel()
    layout, _ = engine.describe()
    assert layout.is_mla
    assert layout.format_name == "NL_X_NB_BS_HS"


def test_packing_names_backend_and_instruction_set(make_config: MakeConfig) -> None:
    class Backend:
        @staticmethod
        def get_name() -> str:
            return "CPU_ATTN"

    class Layer:
        isa = "vec"

        def get_attn_backend(self) -> type[Backend]:
            return Backend

    engine = _engine(make_config(), "LBHNC", _full())
    engine.vllm_config.compilation_config = copy.copy(engine.vllm_config.compilation_config)
    packings = set()
    for isa in ("vec", "amx"):
        layer = Layer()
        layer.isa = isa
        engine.vllm_config.compilation_config.static_forward_context = dict.fromkeys(engine.kv_caches, layer)
        layout, _ = engine.describe()
        assert layout.groups[0].attention_backend == "CPU_ATTN"
        packings.add(layout.packing)
    assert len(packings) == 2
    assert all("/CPU_ATTN/" in packing for packing in packings)


def _padded(engine: Engine) -> None:
    cache = engine.kv_caches["layers.1"]
    strides = (cache.stride(0) * 2, *cache.stride()[1:])
    raw = torch.zeros(cache.numel() * 2, dtype=cache.dtype)
    engine.kv_caches["layers.1"] = raw.as_strided(cache.shape, strides)


def _holes(engine: Engine) -> None:
    cache = engine.kv_caches["layers.1"]
    raw = torch.zeros(cache.numel() * 2, dtype=cache.dtype)
    blocks, heads, tokens, content = cache.shape
    engine.kv_caches["layers.1"] = raw.as_strided(cache.shape, (heads * tokens * content, 2 * content, content, 1))
    assert blocks == NUM_BLOCKS


def _other_device(engine: Engine) -> None:
    engine.kv_caches["layers.1"] = torch.empty(engine.kv_caches["layers.1"].shape, device="meta")


def _missing(engine: Engine) -> None:
    del engine.kv_caches["layers.1"]


def _stray(engine: Engine) -> None:
    engine.kv_caches["draft.0"] = torch.zeros(NUM_BLOCKS, 3, 32, 32)


def _odd_shape(engine: Engine) -> None:
    engine.kv_caches["layers.1"] = torch.zeros(NUM_BLOCKS + 1, 3, 32, 32)


def _no_order(engine: Engine) -> None:
    engine.vllm_config.cache_config.kv_cache_layout = None


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_padded, "start every"),
        (_holes, "does not lie in one piece"),
        (_other_device, "device 'meta' is not supported"),
        (_missing, r"no KV tensor for layers\.1"),
        (_stray, r"draft\.0 outside of its cache configuration"),
        (_odd_shape, "has the shape"),
        (_no_order, "has not resolved"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_memory_we_cannot_copy_is_declined_in_one_line(make_config: MakeConfig, spoil: Any, text: str) -> None:
    engine = _engine(make_config(), "LBHNC", _full())
    spoil(engine)
    with pytest.raises(DeclinedError, match=text) as caught:
        engine.describe()
    assert "\n" not in str(caught.value)


def test_packed_blocks_with_padding_are_declined(make_config: MakeConfig) -> None:
    engine = _engine(make_config(), "BLHNC", _full())
    del engine.kv_cache_config.kv_cache_tensors[0].layers[-1]
    del engine.kv_caches["layers.2"]
    with pytest.raises(DeclinedError, match="do not fill a block"):
        engine.describe()
