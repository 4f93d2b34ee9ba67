"""The server's own word on engine pages: checksums by GET /kvcache/check, which asks the worker for them."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache.cli.api_client import APIClient
from lmcache.core.block_ranges import format_block_ids
from lmcache.errors import APIRefusedError, ConfigError

# Of one question: its ids must fit into a request line.
_BLOCKS_MAX = 512


class PageCheck:
    """Checksums of one registered worker's blocks, chunk by chunk."""

    def __init__(self, api: APIClient, instance_id: int, blocks_per_chunk: int, model_name: str) -> None:
        """Raises ConfigError if that server does not know the worker."""
        self._api = api
        self._instance_id = instance_id
        self._blocks_per_chunk = blocks_per_chunk
        known = api.get("/status", "cache_context_meta")["cache_context_meta"]
        if known.get(str(instance_id), {}).get("model_name") != model_name:
            raise ConfigError(f"--http-url {api.url} is another server's: {model_name} is not registered there")

    def checksums(self, block_ids: Sequence[int]) -> list[str]:
        """One MD5 for each chunk's worth of these blocks."""
        step = max(1, _BLOCKS_MAX // self._blocks_per_chunk) * self._blocks_per_chunk
        parts = [block_ids[start : start + step] for start in range(0, len(block_ids), step)]
        return [digest for part in parts for digest in self._ask(part)]

    def _ask(self, block_ids: Sequence[int]) -> list[str]:
        query: dict[str, str | int | bool | None] = {
            "block_ids": format_block_ids(block_ids), "chunk_size": self._blocks_per_chunk,
            "instance_id": self._instance_id,
        }  # fmt: skip
        digests: list[str] = self._api.get("/kvcache/check", "chunk_checksums", query=query)["chunk_checksums"]
        if len(digests) != -(-len(block_ids) // self._blocks_per_chunk):
            raise APIRefusedError(200, f"/kvcache/check answered {len(digests)} checksums for {len(block_ids)} blocks")
        return digests
