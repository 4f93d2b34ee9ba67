"""Names of cached things: `ObjectKey` and the invariants of its fields.

Knows nothing of where an object is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmcache.errors import KeyFormatError

CACHE_SALT_CHARS_MAX = 128
MODEL_NAME_CHARS_MAX = 4096
_SALT_FORBIDDEN = ("@", "/", "\\", "\0")
_MODEL_FORBIDDEN = "@"
_RANK_MAX = 0xFF


def check_model_name(model_name: str) -> str:
    if not 0 < len(model_name) <= MODEL_NAME_CHARS_MAX:
        raise KeyFormatError(f"model_name must have 1 to {MODEL_NAME_CHARS_MAX} characters (got {len(model_name)})")
    if _MODEL_FORBIDDEN in model_name:
        raise KeyFormatError(f"model_name must not contain '@' (got {model_name!r})")
    _check_text("model_name", model_name)
    return model_name


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise KeyFormatError(f"{name} must be valid Unicode text (it has a lone surrogate)") from None


def check_cache_salt(cache_salt: str) -> str:
    """The salt is the tenant. Empty means none; its characters must survive in file names."""
    if len(cache_salt) > CACHE_SALT_CHARS_MAX:
        raise KeyFormatError(f"cache_salt exceeds max length {CACHE_SALT_CHARS_MAX} (got {len(cache_salt)})")
    _check_text("cache_salt", cache_salt)
    found = frozenset(character for character in _SALT_FORBIDDEN if character in cache_salt)
    if found:
        raise KeyFormatError(f"cache_salt must not contain {found!r} (got {cache_salt!r})")
    return cache_salt


def make_kv_rank(world_size: int, global_rank: int, local_world_size: int, local_rank: int) -> int:
    """Pack a rank's place as `(world << 24) | (rank << 16) | (local world << 8) | local rank`."""
    for name, value in (("world_size", world_size), ("local_world_size", local_world_size)):
        if not 1 <= value <= _RANK_MAX:
            raise KeyFormatError(f"{name} must be 1 to {_RANK_MAX} (got {value})")
    if not 0 <= global_rank < world_size or not 0 <= local_rank < local_world_size:
        raise KeyFormatError(f"rank {global_rank}/{local_rank} is outside a world of {world_size}/{local_world_size}")
    return (world_size << 24) | (global_rank << 16) | (local_world_size << 8) | local_rank


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """One chunk of one rank and object group, for one model and tenant; equal over all fields."""

    chunk_hash: bytes
    model_name: str
    kv_rank: int
    object_group_id: int = 0
    cache_salt: str = ""

    def __post_init__(self) -> None:
        check_model_name(self.model_name)
        check_cache_salt(self.cache_salt)
        if self.object_group_id < 0:
            raise KeyFormatError(f"object_group_id must be >= 0 (got {self.object_group_id})")
        if not 0 <= self.kv_rank <= 0xFFFFFFFF:
            raise KeyFormatError(f"kv_rank must fit 32 bits (got {self.kv_rank})")
