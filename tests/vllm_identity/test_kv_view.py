"""Arrays over the tensors that vLLM registered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmcache.errors import DeclinedError
from lmcache.integration.vllm.kv_view import view_kv_tensors

SHAPE = (5, 2, 16, 8)


@pytest.mark.parametrize(
    ("dtype", "seen"),
    [
        (torch.bfloat16, np.uint16),
        (torch.float8_e4m3fn, np.uint8),
        (torch.float8_e5m2, np.uint8),
        (torch.uint8, np.uint8),
        (torch.float16, np.float16),
        (torch.float32, np.float32),
    ],
)
def test_memory_is_shared(dtype: torch.dtype, seen: type) -> None:
    tensor = torch.zeros(SHAPE, dtype=dtype)
    found = view_kv_tensors({"layers.0": tensor})
    layer = found.layers["layers.0"]
    assert (layer.array.shape, layer.array.dtype, layer.device) == (SHAPE, seen, "cpu")
    assert layer.dtype == str(dtype)
    assert found.tokens_per_block == 16
    assert not layer.array.any()
    tensor[3, 1, 15, 7] = 1.0
    assert layer.array[3, 1, 15, 7] != 0
    assert np.count_nonzero(layer.array) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_strides_stay(dtype: torch.dtype) -> None:
    """As vLLM lays it out: the view's axes are not in the order of memory."""
    memory = torch.arange(5 * 16 * 2 * 8).to(dtype).view(5, 16, 2, 8)
    view = memory.permute(0, 2, 1, 3)
    array = view_kv_tensors({"a": view}).layers["a"].array
    assert array.__array_interface__["data"][0] == memory.data_ptr()
    assert array.strides == tuple(stride * view.element_size() for stride in view.stride())
    bits = memory.view(torch.uint16 if dtype is torch.bfloat16 else dtype).numpy()
    assert np.array_equal(array, bits.transpose(0, 2, 1, 3))


def test_older_shapes_tell_their_tokens_themselves() -> None:
    assert view_kv_tensors({"a": torch.zeros(2, 5, 16, 2, 8)}).tokens_per_block is None
    assert view_kv_tensors({"a": torch.zeros(5, 16, 72)}).tokens_per_block is None


def test_no_layers_are_no_layers() -> None:
    assert not view_kv_tensors({}).layers


@pytest.mark.parametrize("other", [torch.zeros(5, 2, 32, 8), torch.zeros(5, 16, 72)])
def test_layers_that_disagree_are_declined(other: torch.Tensor) -> None:
    with pytest.raises(DeclinedError, match="different numbers of tokens"):
        view_kv_tensors({"a": torch.zeros(SHAPE), "b": other})


def test_other_devices_are_declined() -> None:
    with pytest.raises(DeclinedError, match="a lies on the device meta"):
        view_kv_tensors({"a": torch.zeros(SHAPE, device="meta")})
