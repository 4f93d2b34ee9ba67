"""Synthetic pages: equal seeds give equal bytes, and what operators are shown is the memory that is copied."""

from __future__ import annotations

import numpy as np
import pytest

from lmcache.errors import ConfigError
from lmcache.integration.standalone.paged import PagedCache
from lmcache.integration.standalone.settings import StandaloneSettings, load_standalone_config
from lmcache.integration.synthetic.shape import DTYPE_BYTES, ModelShape
from lmcache.kv_copy.cpu import CpuCopier

SHAPE = ModelShape(3, 2, 8, "float16")


def make(seed: int = 0, dtype: str = "float16") -> PagedCache:
    return PagedCache(ModelShape(3, 2, 8, dtype), 4, 10, seed)


def test_bytes_follow_from_the_seed() -> None:
    first, again, other = make(1), make(1), make(2)
    assert np.array_equal(first.pages, again.pages)
    assert not np.array_equal(first.pages, other.pages)
    first.fill(2)
    assert np.array_equal(first.pages, other.pages)
    assert first.seed == 2


@pytest.mark.parametrize("dtype", list(DTYPE_BYTES))
def test_tensors_are_the_pages(dtype: str) -> None:
    cache = make(dtype=dtype)
    tensors = cache.tensors()
    assert tensors.tokens_per_block == 4
    assert list(tensors.layers) == ["layer.0", "layer.1", "layer.2"]
    tensor = tensors.layers["layer.1"]
    assert (tensor.array.shape, tensor.dtype, tensor.device) == ((10, 2, 4, 16), f"torch.{dtype}", "cpu")
    cache.pages[1, 7] = 0
    assert not tensor.array[7].view(np.uint8).any()
    assert tensor.array[6].view(np.uint8).any()


def test_a_chunk_travels_to_other_blocks() -> None:
    cache = make()
    copier = CpuCopier([cache.pages])
    slot = np.empty(2 * copier.block_bytes, dtype=np.uint8)
    copier.gather([0, 1], slot)
    copier.scatter(slot, 0, [8, 3])
    array = cache.tensors().layers["layer.2"].array
    assert np.array_equal(array[8].view(np.uint16), array[0].view(np.uint16))
    assert np.array_equal(array[3].view(np.uint16), array[1].view(np.uint16))


def test_settings_that_nobody_set() -> None:
    settings = StandaloneSettings(SHAPE, 16, 64, "m", 0)
    config, warnings = load_standalone_config(settings, {}, None)
    assert warnings == []
    assert config.internal_api_server_enabled
    assert config.max_local_cpu_size == 0.0625
    config, _ = load_standalone_config(
        settings, {"LMCACHE_INTERNAL_API_SERVER_ENABLED": "false", "LMCACHE_MAX_LOCAL_CPU_SIZE": "1"}, None
    )
    assert not config.internal_api_server_enabled
    assert config.max_local_cpu_size == 1


def test_chunks_must_fit() -> None:
    with pytest.raises(ConfigError, match="not a multiple of --block-size 24"):
        load_standalone_config(StandaloneSettings(SHAPE, 24, 64, "m", 0), {}, None)
    with pytest.raises(ConfigError, match="hold no chunk"):
        load_standalone_config(StandaloneSettings(SHAPE, 16, 15, "m", 0), {}, None)
