"""What operators can do to an engine inside an inference process. Any thread; calls may block."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class LoadedChunks:
    """`failed_keys`: all of them; `total_files` counts also what a limit left out."""

    num_loaded: int
    total_files: int
    failed_keys: tuple[str, ...]


class CacheOperations(Protocol):
    """Backends go by their documented names (`LocalCPUBackend`, `LocalDiskBackend`, `RemoteBackend`,
    `RemoteBackend-<plugin>`), in the order in which they are asked."""

    def clear(self, locations: Collection[str] | None = None) -> int:
        """Objects removed from these backends (None: all); unknown names remove nothing. Raises LMCacheError."""

    # Freeze

    @property
    def is_frozen(self) -> bool: ...

    def freeze(self, is_frozen: bool) -> None:
        """While frozen: no store, no eviction, nothing brought up from other tiers, no event; L1 stays as it is."""

    # Hot cache

    @property
    def has_hot_cache(self) -> bool: ...

    def set_hot_cache(self, is_on: bool) -> None:
        """Off: what L1 holds goes, and nothing stays there any more."""

    # Backends

    def backends(self) -> dict[str, str]:
        """Name and class of each."""

    def bypassed(self) -> list[str]:
        """Sorted."""

    def bypass(self, name: str, is_bypassed: bool) -> bool:
        """Take a backend out of lookups, loads and stores, or back in; whether it was out.
        Raises UnknownBackendError."""

    def close_backend(self, name: str) -> None:
        """Raises UnknownBackendError; ConfigError for one that cannot be closed (L1 itself)."""

    def create_backends(self) -> dict[str, str]:
        """Open those that the configuration asks for and that are not there; name and class of the new ones.
        Raises ConfigError."""

    def recreate_backend(self, name: str) -> dict[str, str]:
        """Close it and open it by the configuration of now. Raises UnknownBackendError, ConfigError."""

    # Tokens that no request has

    def store_mock(self, token_ids: Sequence[int]) -> int:
        """Store blocks 0... of the pages under keys that no request can make; chunks stored. Raises LMCacheError."""

    def retrieve_mock(self, token_ids: Sequence[int]) -> int:
        """Load what `store_mock` stored; leading tokens that were found. Never into pages of running requests.
        Raises LMCacheError."""

    # Files

    def load_fs_chunks(self, config_path: str, num_chunks_max: int | None) -> LoadedChunks:
        """Bring what the files of another configuration's remote tier hold into L1. Raises ConfigError where it
        cannot be read, else LMCacheError."""
