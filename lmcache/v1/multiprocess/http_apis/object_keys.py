"""Keys of objects as they travel in JSON, and a page of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import HTTPException
from pydantic import BaseModel, FailFast, Field, StrictInt

from lmcache.core.keys import ObjectKey
from lmcache.l2.base import KeyPage

BATCH_KEYS_MAX = 10_000


class EncodedObjectKey(BaseModel):
    """One chunk of one rank and object group, for one model and tenant. Unknown fields are ignored."""

    chunk_hash_hex: str = Field(description="The chunk's digest in hexadecimal digits")
    model_name: str = Field(description="Without `@`")
    kv_rank: StrictInt
    object_group_id: StrictInt = 0
    cache_salt: str = Field("", description="The tenant: at most 128 characters, none of `@` `/` `\\` NUL")

    def decode(self) -> ObjectKey:
        """Raises ValueError that says which rule of keys is broken."""
        digest = bytes.fromhex(self.chunk_hash_hex)
        return ObjectKey(digest, self.model_name, self.kv_rank, self.object_group_id, self.cache_salt)


# One that is wrong is enough to refuse a list: to describe a million of them would hold up everybody.
EncodedObjectKeys = Annotated[list[EncodedObjectKey], FailFast()]


def decode_keys(keys: Sequence[EncodedObjectKey]) -> list[ObjectKey]:
    """Or 400 that names the first bad one, or that there are too many."""
    if len(keys) > BATCH_KEYS_MAX:
        raise HTTPException(400, f"too many keys in a single request (limit={BATCH_KEYS_MAX}, got={len(keys)})")
    decoded = []
    for number, key in enumerate(keys):
        try:
            decoded.append(key.decode())
        except ValueError as error:
            raise HTTPException(400, f"keys[{number}]: {error}") from error
    return decoded


def encode_key(key: ObjectKey) -> dict[str, object]:
    return {
        "chunk_hash_hex": key.chunk_hash.hex(),
        "model_name": key.model_name,
        "kv_rank": key.kv_rank,
        "object_group_id": key.object_group_id,
        "cache_salt": key.cache_salt,
    }


def encode_page(adapter: str | None, page: KeyPage) -> dict[str, object]:
    return {
        "adapter": adapter,
        "entries": [{"key": encode_key(key), "size_bytes": size} for key, size in page.entries],
        "next_page_token": page.next_page_token,
    }
