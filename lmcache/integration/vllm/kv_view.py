"""The tensors that vLLM registered as named numpy arrays over the same memory, for operators who look at them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lmcache.embedded.kv_tensors import KVTensor, KVTensors
from lmcache.errors import DeclinedError

# What numpy has no name for, as bits of the same size.
_BITS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
# `[blocks, heads, tokens, content]`, the only shape in which vLLM registers its pages.
_NDIM, _TOKENS_AXIS = 4, 2


def view_kv_tensors(kv_caches: Mapping[str, torch.Tensor]) -> KVTensors:
    """Strides stay as they are. A block may be made of several of the kernels': their tokens are counted then.

    Raises DeclinedError.
    """
    tokens = {int(tensor.shape[_TOKENS_AXIS]) for tensor in kv_caches.values() if tensor.ndim == _NDIM}
    if len(tokens) > 1 or (tokens and any(tensor.ndim != _NDIM for tensor in kv_caches.values())):
        shapes = ", ".join(sorted({str(tuple(tensor.shape)) for tensor in kv_caches.values()}))
        raise DeclinedError(f"layers whose pages hold different numbers of tokens cannot be shown ({shapes})")
    layers = {name: _view(name, tensor) for name, tensor in kv_caches.items()}
    return KVTensors(layers, tokens.pop() if tokens else None)


def _view(name: str, tensor: torch.Tensor) -> KVTensor:
    if tensor.device.type != "cpu":
        raise DeclinedError(f"{name} lies on the device {tensor.device}, where it cannot be shown")
    dtype, device = str(tensor.dtype), str(tensor.device)
    bare = tensor.detach()
    try:
        array = bare.numpy()
    except TypeError:
        array = bare.view(_BITS[tensor.element_size()]).numpy()
    return KVTensor(array, dtype, device)
