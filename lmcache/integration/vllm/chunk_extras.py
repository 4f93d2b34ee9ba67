"""What, beside its tokens, decides the KV of one request's chunks: LoRA, images, prompt embeddings.

The list is vLLM's own, as it goes into its block hashes, taken over ranges of our chunks; an
image in one chunk reaches all later ones through the hash chain. The salt is left out, since
it is a field of the key. Text without anything extra gives empty bytes.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3
from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys

from lmcache.errors import DeclinedError
from lmcache.integration.vllm.weights import find_local

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.request import Request

_SALT_KEY = "cache_salt"
_ADAPTER_FILES = ("adapter_model.*", "adapter_config.json", "new_embeddings.*")

_Signature = tuple[tuple[str, int, int, int], ...]


class AdapterDigests:
    """Content digests of LoRA folders, read again only where a file's time, size or inode changed.

    vLLM's own prefix cache knows an adapter by name and path. Once its files change under
    them, blocks of the old weights may still be found there, and may be computed still: then
    nothing tells which weights a block is of, and the adapter is declined for as long as the
    process lives. An adapter replaced after vLLM loaded it ahead of its first request is not
    noticed. Thread-safe.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._known: dict[tuple[str, str], tuple[_Signature, str]] = {}
        self._replaced: set[tuple[str, str]] = set()

    def digest(self, name: str, path: str) -> str:
        try:
            folder = find_local(path, None, None)
            signature = _signature(folder)
            with self._mutex:
                known = self._known.get((name, path))
                is_replaced = (name, path) in self._replaced
            if known is not None and known[0] == signature and not is_replaced:
                return known[1]
            digest = _content_digest(folder, signature)
            if _signature(folder) != signature:
                raise DeclinedError(f"LoRA {name!r} is being written in {folder}")
        except OSError as error:
            raise DeclinedError(f"LoRA {name!r} cannot be read ({error})") from error
        self._remember(name, path, signature, digest)
        return digest

    def _remember(self, name: str, path: str, signature: _Signature, digest: str) -> None:
        with self._mutex:
            _, first = self._known.setdefault((name, path), (signature, digest))
            if first != digest:
                self._replaced.add((name, path))
            if (name, path) in self._replaced:
                raise DeclinedError(
                    f"LoRA {name!r} was replaced in {path} while in use: restart the engine, or load it "
                    f"under another name or path, to have it cached again"
                )
            self._known[name, path] = (signature, digest)


_PROCESS_ADAPTERS = AdapterDigests()


class ChunkExtras:
    """The extras of one growing request, each chunk looked at once. Owned by one thread."""

    __slots__ = ("_adapters", "_chunk_size", "_feature_index", "_request", "by_chunk")

    def __init__(self, request: Request, adapters: AdapterDigests = _PROCESS_ADAPTERS) -> None:
        self._request = request
        self._adapters = adapters
        self._chunk_size = 0
        self._feature_index = 0
        self.by_chunk: list[bytes] = []

    def extend(self, num_tokens: int, chunk_size: int) -> None:
        """Know the extras of every whole chunk of the first `num_tokens` tokens.

        Raises DeclinedError for a request that must not be cached.
        """
        if chunk_size != self._chunk_size:
            self._chunk_size, self._feature_index, self.by_chunk = chunk_size, 0, []
        known, total = len(self.by_chunk), num_tokens // chunk_size
        if total <= known:
            return
        if is_plain(self._request):
            self.by_chunk += [b""] * (total - known)
            return
        adapter = self._adapter_key()
        for index in range(known, total):
            self.by_chunk.append(self._extra(index * chunk_size, (index + 1) * chunk_size, adapter))

    def tail(self, start: int, end: int) -> bytes:
        """The extras of tokens beyond the whole chunks that are known. Raises DeclinedError."""
        if is_plain(self._request):
            return b""
        feature_index = self._feature_index
        try:
            return self._extra(start, end, self._adapter_key())
        finally:
            self._feature_index = feature_index  # the chunk may yet become whole

    def _extra(self, start: int, end: int, adapter: list[object]) -> bytes:
        request = self._request
        keys, self._feature_index = generate_block_hash_extra_keys(request, start, end, self._feature_index)
        kept: list[object] = [key for key in keys or () if key[0] != _SALT_KEY]
        if adapter:
            kept.append(adapter)
        if request.prompt_is_token_ids is not None:
            # Which rows of the embeddings stand in for tokens; vLLM's key holds only their values.
            kept.append(["is_token", bytes(map(bool, request.prompt_is_token_ids[start:end]))])
        return msgspec.msgpack.encode(kept) if kept else b""

    def _adapter_key(self) -> list[object]:
        lora: LoRARequest | None = self._request.lora_request
        if lora is None:
            return []
        return ["lora_files", self._adapters.digest(lora.lora_name, lora.lora_path), lora.is_3d_lora_weight]


def chunk_extras(request: Request, chunk_size: int, num_tokens: int) -> list[bytes]:
    """The extras of the whole chunks among a request's first `num_tokens` tokens."""
    extras = ChunkExtras(request)
    extras.extend(num_tokens, chunk_size)
    return extras.by_chunk


def is_plain(request: Request) -> bool:
    """Nothing but tokens decides this request's KV."""
    return not request.mm_features and request.lora_request is None and request.prompt_embeds is None


def _adapter_paths(folder: Path) -> list[Path]:
    return sorted({path for pattern in _ADAPTER_FILES for path in folder.glob(pattern) if path.is_file()})


def _signature(folder: Path) -> _Signature:
    paths = _adapter_paths(folder)
    if not any(path.name.startswith("adapter_model.") for path in paths):
        raise DeclinedError(f"no adapter_model.* in the LoRA folder {folder}")
    stats = [(path.name, os.stat(path)) for path in paths]
    return tuple((name, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats)


def _content_digest(folder: Path, signature: _Signature) -> str:
    digest = blake3()
    for name, _, size_bytes, _ in signature:
        digest.update(msgspec.msgpack.encode([name, size_bytes]))
        digest.update(blake3(max_threads=blake3.AUTO).update_mmap(folder / name).digest())
    return digest.hexdigest()
