"""Which weights a model runs with, as plain values that are equal on every host.

Reads files, never loads them. Up to 512 MiB of weights are digested whole. Above that each
tensor is sampled at evenly spaced places, so that the cost is bounded whatever the model's
size: a change that lies between the samples of one tensor is not seen. Whoever edits single
values of a large checkpoint in place sets `lmcache.mp.model_version`.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from lmcache.errors import DeclinedError

_FULL_DIGEST_BYTES_MAX = 512 << 20
_SAMPLE_BYTES = 4096
_NUM_SAMPLES_MAX = 8192
_SAMPLES_PER_SPAN_MAX = 256
_NUM_READERS = 8
_HEADER_BYTES_MAX = 100 << 20
# What a header that is JSON, but no safetensors header, ends in.
_MALFORMED = (LookupError, TypeError, AttributeError, struct.error)
_BLOB_NAME = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REMEDY = "set lmcache.mp.model_version to name the weights yourself"

# What vLLM's loaders read, in their order of preference: the first pattern that matches wins.
_DEFAULT_PATTERNS = ("consolidated*.safetensors", "*.safetensors", "*.bin", "*.pt")
_PATTERNS = {
    "hf": ("*.safetensors", "*.bin", "*.pt"),
    "safetensors": ("*.safetensors",),
    "fastsafetensors": ("*.safetensors",),
    "instanttensor": ("*.safetensors",),
    "runai_streamer": ("*.safetensors",),
    "sharded_state": ("*.safetensors",),
    "runai_streamer_sharded": ("*.safetensors",),
    "mistral": ("consolidated*.safetensors",),
    "pt": ("*.pt",),
    "npcache": ("*.bin",),
    "auto": _DEFAULT_PATTERNS,
    "bitsandbytes": _DEFAULT_PATTERNS,
}
# Files beside the weights that some quantization methods read.
QUANTIZATION_FILES = ("hf_quant_config.json", "quant_config.json", "quantize_config.json", "quantization_config.json")


@dataclass(frozen=True, slots=True)
class _WeightFile:
    path: Path
    size_bytes: int
    blob: str


def weights_identity(
    model_path: str,
    model_name: str,
    load_format: str,
    revision: str | None,
    seed: int,
    download_dir: str | None = None,
    has_own_code: bool = False,
) -> dict[str, object]:
    """What names the weights. Raises DeclinedError where they cannot be read.

    `model_path` is a folder, a file or a repository of the hub. `has_own_code`: the model's
    implementation comes with it, so its Python files count too.
    """
    if load_format == "dummy":
        return {"load_format": load_format, "seed": seed}
    place = _find(model_path, revision, download_dir)
    try:
        files = _weight_files(place, load_format)
        if not files:
            raise DeclinedError(f"no weights of load format {load_format} in {place} ({model_name}): {_REMEDY}")
        is_whole = sum(file.size_bytes for file in files) <= _FULL_DIGEST_BYTES_MAX
        digests = _whole_digests(file.path for file in files) if is_whole else _sampled_digests(files)
        return {
            "method": "whole" if is_whole else "samples",
            "files": [
                [file.path.name, file.size_bytes, file.blob, digest]
                for file, digest in zip(files, digests, strict=True)
            ],
            "beside": _beside(place, has_own_code),
        }
    except (OSError, ValueError, *_MALFORMED) as error:
        raise DeclinedError(f"the weights of {model_name} cannot be read ({error}): {_REMEDY}") from error


def find_local(name: str, revision: str | None, download_dir: str | None) -> Path:
    """A folder or file of that name, else its snapshot in the hub's local cache. Never the network."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, cache_dir=download_dir, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise DeclinedError(f"{name} is neither a folder nor in the hub's local cache") from error


def _find(model_path: str, revision: str | None, download_dir: str | None) -> Path:
    try:
        return find_local(model_path, revision, download_dir)
    except DeclinedError as error:
        raise DeclinedError(f"the weights cannot be identified: {error}; {_REMEDY}") from error


def _weight_files(place: Path, load_format: str) -> list[_WeightFile]:
    """The files vLLM would load, sorted by name, and no others: hosts may hold different extras."""
    if place.is_file():
        return [_weight_file(place)]
    for pattern in _PATTERNS.get(load_format, (*_DEFAULT_PATTERNS, "*.gguf")):
        found = sorted(path for path in place.glob(pattern) if path.is_file())
        if found:
            return [_weight_file(path) for path in _indexed(place, pattern, found)]
    return []


def _indexed(place: Path, pattern: str, found: Sequence[Path]) -> Sequence[Path]:
    """Without the safetensors files that the checkpoint's index does not name: vLLM skips those."""
    prefix = "consolidated" if pattern.startswith("consolidated") else "model"
    index = place / f"{prefix}.safetensors.index.json"
    if not pattern.endswith(".safetensors") or not index.is_file():
        return found
    weight_map = json.loads(index.read_bytes()).get("weight_map", {})
    named = set(weight_map.values())
    return [path for path in found if path.name in named] or found


def _weight_file(path: Path) -> _WeightFile:
    return _WeightFile(path, path.stat().st_size, _blob_name(path))


def _blob_name(path: Path) -> str:
    """The content hash a hub snapshot's link points at. Somebody may still write through the link,
    so it comes on top of what is read."""
    if not path.is_symlink():
        return ""
    target = Path(os.readlink(path))
    is_blob = target.parent.name == "blobs" and _BLOB_NAME.fullmatch(target.name)
    return target.name if is_blob else ""


def _beside(place: Path, has_own_code: bool) -> list[list[str]]:
    if place.is_file():
        return []
    paths = [place / name for name in QUANTIZATION_FILES if (place / name).is_file()]
    if has_own_code:
        paths += sorted(place.glob("*.py"))
    return [[path.name, digest] for path, digest in zip(paths, _whole_digests(paths), strict=True)]


def _whole_digests(paths: Iterable[Path]) -> list[str]:
    return [blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest() for path in paths]


def _sampled_digests(files: Sequence[_WeightFile]) -> list[str]:
    spans = [_spans(file) for file in files]
    num_spans = max(1, sum(len(of_file) for of_file in spans))
    per_span = max(1, min(_SAMPLES_PER_SPAN_MAX, _NUM_SAMPLES_MAX // num_spans))
    stride = -(-num_spans // _NUM_SAMPLES_MAX)
    with ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="lmcache-weights") as readers:
        return [
            _sampled_digest(file, of_file[::stride], per_span, readers)
            for file, of_file in zip(files, spans, strict=True)
        ]


def _spans(file: _WeightFile) -> list[tuple[int, int]]:
    """Byte ranges to sample: one per tensor where the format tells, else the whole file."""
    if file.path.suffix != ".safetensors":
        return [(0, file.size_bytes)]
    with file.path.open("rb") as stream:
        (header_bytes,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
        if header_bytes > min(_HEADER_BYTES_MAX, file.size_bytes):
            raise ValueError(f"{file.path.name} has no safetensors header")
        header = json.loads(stream.read(header_bytes))
    start = 8 + header_bytes
    tensors = sorted(entry["data_offsets"] for name, entry in header.items() if name != "__metadata__")
    return [(start + begin, start + end) for begin, end in tensors if end > begin]


def _sampled_digest(
    file: _WeightFile, spans: Sequence[tuple[int, int]], per_span: int, readers: ThreadPoolExecutor
) -> str:
    digest = blake3()
    descriptor = os.open(file.path, os.O_RDONLY)
    try:
        if file.path.suffix == ".safetensors":
            (header_bytes,) = struct.unpack("<Q", os.pread(descriptor, 8, 0))
            digest.update(os.pread(descriptor, header_bytes, 8))
        places = [place for span in spans for place in _places(*span, per_span)]
        for part in readers.map(lambda place: os.pread(descriptor, place[1], place[0]), places):
            digest.update(part)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _places(begin: int, end: int, count: int) -> list[tuple[int, int]]:
    """`count` evenly spaced (offset, length) from the first byte to the last; all of it if that is less."""
    length = end - begin
    if length <= count * _SAMPLE_BYTES:
        return [(begin, length)]
    room = length - _SAMPLE_BYTES
    if count == 1:
        return [(begin + room // 2, _SAMPLE_BYTES)]
    return [(begin + room * index // (count - 1), _SAMPLE_BYTES) for index in range(count)]
