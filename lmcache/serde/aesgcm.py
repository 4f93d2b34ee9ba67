"""Encryption and authentication by AES-GCM, with keys from a file.

An object is bound to its key and length: one that was altered, or put under another name, is
refused. Names, salts, sizes and times stay readable to whoever sees the backend.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lmcache.core.keys import ObjectKey
from lmcache.errors import ConfigError, CorruptObjectError
from lmcache.serde.base import Encoded, Serde
from lmcache.serde.key_file import KeyFile
from lmcache.serde.workers import MAX_WORKERS, check_max_workers, tell_of_max_workers

_NONCE_BYTES = 12
_TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class Config:
    """`key_file`: lines of a key id and a key in hex or base64, the first of them in use. `max_workers` has no
    effect."""

    key_file: str
    max_workers: int = MAX_WORKERS

    def __post_init__(self) -> None:
        if not isinstance(self.key_file, str) or not self.key_file:
            raise ConfigError(f"key_file must be the path of a file (got {self.key_file!r})")
        check_max_workers(self.max_workers)


class AesGcmSerde:
    """`random_bytes` gives the nonces, 96 random bits each."""

    name: ClassVar[str] = "aesgcm"
    is_lossy: ClassVar[bool] = False

    def __init__(self, keys: KeyFile, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._keys = keys
        self._random_bytes = random_bytes

    def encode(self, data: memoryview, layout: str, key: ObjectKey) -> Encoded | None:
        used = self._keys.current()
        nonce = self._random_bytes(_NONCE_BYTES)
        bound_to = _bound_to(key, used.key_id, len(data))
        payload = AESGCM(used.secret).encrypt(nonce, data, bound_to)
        return Encoded(payload, {"key_id": used.key_id, "nonce": nonce.hex()})

    def decode(self, payload: memoryview, parameters: Mapping[str, object], target: memoryview, key: ObjectKey) -> None:
        key_id, nonce = parameters.get("key_id"), _nonce(parameters.get("nonce"))
        used = self._keys.find(key_id) if isinstance(key_id, str) else None
        if used is None:
            raise CorruptObjectError(f"it was encrypted under key {key_id!r}, which the key file does not have")
        if len(payload) != len(target) + _TAG_BYTES:
            raise CorruptObjectError("its encrypted content has the wrong length")
        try:
            target[:] = AESGCM(used.secret).decrypt(nonce, payload, _bound_to(key, used.key_id, len(target)))
        except InvalidTag as error:
            raise CorruptObjectError(
                "it was altered, or is another object's, or its key is not the right one"
            ) from error

    def report(self) -> dict[str, object]:
        return {"type": self.name, "key_id": self._keys.current().key_id, "num_keys": self._keys.num_keys}


def _bound_to(key: ObjectKey, key_id: str, num_bytes: int) -> bytes:
    """What a ciphertext is valid for."""
    fields = [key.chunk_hash.hex(), key.model_name, key.kv_rank, key.object_group_id, key.cache_salt, key_id, num_bytes]
    return json.dumps(fields, separators=(",", ":")).encode()


def _nonce(text: object) -> bytes:
    try:
        nonce = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        nonce = b""
    if len(nonce) != _NONCE_BYTES:
        raise CorruptObjectError("the nonce of its encryption is damaged")
    return nonce


def make(config: Config) -> Serde:
    tell_of_max_workers(AesGcmSerde.name, config.max_workers)
    return AesGcmSerde(KeyFile(config.key_file))
