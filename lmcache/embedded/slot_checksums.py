"""MD5s of what lies at slots of an engine's pages right now. Reads them while the engine may write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmcache.core.block_ranges import expand_ids
from lmcache.embedded.kv_tensors import KVTensor, KVTensors
from lmcache.errors import BlockRangeError, NoKVError, UnsupportedFormatError

# Of a list: so many times the slots there are, but never more than that.
_IDS_PER_SLOT_MAX = 4
_IDS_MAX = 4_000_000
# Of one answer, over all layers.
_DIGESTS_MAX = 200_000
# What is gathered at once, so that a chunk may be as long as the cache.
_GATHERED_SLOTS = 4096
# What a layer says that cannot be read as the others are.
ERROR = "error"

Array = np.ndarray[Any, np.dtype[Any]]
Gather = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class SlotChecksums:
    """`by_layer`: MD5s of each chunk, in the order of the layers; `ERROR` in place of each where a layer failed."""

    slots: list[int]
    num_chunks: int
    by_layer: Mapping[str, list[str]]

    def over_layers(self) -> list[str]:
        """For each chunk the MD5 of its layers' MD5s as text, in the order of the layers' names.

        Raises UnsupportedFormatError where a layer failed.
        """
        rows = [self.by_layer[name] for name in sorted(self.by_layer)]
        failed = [name for name, row in self.by_layer.items() if ERROR in row]
        if failed:
            raise UnsupportedFormatError(f"these layers cannot be read like the first: {', '.join(failed[:5])}")
        return [_md5("".join(digests).encode()) for digests in zip(*rows, strict=True)]


def count_slots(tensors: KVTensors) -> int:
    """Of the first layer. Raises NoKVError where there is none, UnsupportedFormatError."""
    if not tensors.layers:
        raise NoKVError("kv_caches is empty or not initialized")
    return _count(next(iter(tensors.layers.values())).array.shape, tensors.tokens_per_block)


def check_slots(tensors: KVTensors, ranges: Sequence[range]) -> list[int]:
    """The slots one by one. Raises BlockRangeError with the documented text; and as `count_slots`."""
    num_slots = count_slots(tensors)
    outside = [_shown(ids, num_slots) for ids in ranges if ids.start < 0 or ids.stop > num_slots]
    if outside:
        listed = ", ".join(outside[:20]) + (", ..." if len(outside) > 20 else "")
        raise BlockRangeError(f"Slot indices out of bounds: [{listed}]. Valid range: 0 to {num_slots - 1}")
    return expand_ids(ranges, min(_IDS_MAX, _IDS_PER_SLOT_MAX * num_slots), "slots")


def slot_checksums(tensors: KVTensors, slots: list[int], chunk_size: int) -> SlotChecksums:
    """`slots` are there. Raises BlockRangeError where the answer would be too long, and as `count_slots`."""
    chunk_size = min(chunk_size, max(1, len(slots)))
    num_chunks = -(-len(slots) // chunk_size)
    if num_chunks * len(tensors.layers) > _DIGESTS_MAX:
        raise BlockRangeError(
            f"{num_chunks} chunks of {len(tensors.layers)} layers are too many checksums (limit={_DIGESTS_MAX}): "
            "raise chunk_size"
        )
    num_slots = count_slots(tensors)
    places = np.asarray(slots, dtype=np.int64)
    chunks = [places[start : start + chunk_size] for start in range(0, len(places), chunk_size)]
    by_layer = {
        name: _of_layer(tensor, tensors.tokens_per_block, num_slots, chunks) for name, tensor in tensors.layers.items()
    }
    return SlotChecksums(slots, num_chunks, by_layer)


def _of_layer(tensor: KVTensor, tokens_per_block: int | None, num_slots: int, chunks: list[Array]) -> list[str]:
    try:
        if _count(tensor.array.shape, tokens_per_block) < num_slots:
            return [ERROR] * len(chunks)
        gathers = _gathers(tensor.array, tokens_per_block)
    except UnsupportedFormatError:
        return [ERROR] * len(chunks)
    is_bfloat16 = "bfloat16" in tensor.dtype
    return [_of_chunk(gathers, chunk, is_bfloat16) for chunk in chunks]


def _of_chunk(gathers: list[Gather], slots: Array, is_bfloat16: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for gather in gathers:
        for piece in _pieces(slots):
            values = gather(piece)
            digest.update(np.ascontiguousarray(_widened(values) if is_bfloat16 else values).data)
    return digest.hexdigest()


def _pieces(slots: Array) -> Iterator[Array]:
    for start in range(0, len(slots), _GATHERED_SLOTS):
        yield slots[start : start + _GATHERED_SLOTS]


def _widened(values: Array) -> Array:
    """bfloat16 as float32: the upper half of its bits."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def _count(shape: tuple[int, ...], tokens_per_block: int | None) -> int:
    match (shape, tokens_per_block):
        case ((blocks, _, tokens, _), int()) if tokens == tokens_per_block:
            return blocks * tokens
        case ((2, blocks, tokens, _, _), None) | ((blocks, tokens, _, _), None) | ((blocks, tokens, _), None):
            return blocks * tokens
    raise UnsupportedFormatError(f"slots of KV tensors of shape {list(shape)} are not known")


def _gathers(array: Array, tokens_per_block: int | None) -> list[Gather]:
    """What brings values to the front in the order of slots; keys and values one after the other where they are
    apart. Copies nothing but what it is asked for."""
    if tokens_per_block is not None:
        return [lambda slots: array[slots // tokens_per_block, :, slots % tokens_per_block, :]]
    planes = [array[0], array[1]] if array.ndim == 5 else [array]
    return [_flat(plane) for plane in planes]


def _flat(plane: Array) -> Gather:
    tokens = plane.shape[1]
    return lambda slots: plane[slots // tokens, slots % tokens]


def _shown(ids: range, num_slots: int) -> str:
    """Those outside; a single one as it is."""
    first = ids.start if ids.start < 0 else max(ids.start, num_slots)
    text = str(first) if first == ids.stop - 1 else f"{first}...{ids.stop - 1}"
    return text if len(text) <= 60 else f"{text[:50]}..."


def _md5(text: bytes) -> str:
    return hashlib.md5(text, usedforsecurity=False).hexdigest()
