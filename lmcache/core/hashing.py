"""Token ids to chunk digests: a hash chain over chunks of a prompt.

`h0 = root; h(i) = H(h(i-1), tokens(i))`, so a digest names the whole prefix up to its
chunk. Digests must resist collisions, because tenants share the store. The result never
depends on the process, the host's byte order or PYTHONHASHSEED.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Protocol

from blake3 import blake3

from lmcache.errors import ConfigError, TokenRangeError

DIGEST_BYTES = 32
TOKEN_BYTES = 4
# The root of chains that vLLM itself makes with a cryptographic hash and no PYTHONHASHSEED.
_CBOR_NONE_SEED = "vllm-none-hash"


def tokens_to_bytes(tokens: Sequence[int]) -> bytes:
    """Each token as a big-endian unsigned 32-bit integer."""
    try:
        packed = array("I", tokens)
    except (OverflowError, TypeError) as error:
        raise TokenRangeError(f"token ids must be integers from 0 to 2**32-1: {error}") from error
    if sys.byteorder == "little":
        packed.byteswap()
    return packed.tobytes()


class ChunkHashAlgorithm(Protocol):
    """One way to chain. `extra` is whatever else, beside its tokens, decides a chunk's KV."""

    name: str

    def none_hash(self) -> bytes: ...

    def next_digest(self, prefix: bytes, token_bytes: bytes, extra: bytes) -> bytes: ...


class Blake3Algorithm:
    """`blake3(prefix || big-endian tokens [|| extra])`; the default."""

    name = "blake3"

    def none_hash(self) -> bytes:
        # An integer prefix of 0 (eight bytes, big-endian) over the single token 0.
        return blake3(bytes(8) + bytes(TOKEN_BYTES)).digest()

    def next_digest(self, prefix: bytes, token_bytes: bytes, extra: bytes) -> bytes:
        return blake3(prefix + token_bytes + extra).digest()


class Sha256CborAlgorithm:
    """`sha256(canonical CBOR of (prefix, tokens, extra or null))`, readable from any language."""

    name = "sha256_cbor"

    def __init__(self) -> None:
        import cbor2

        self._dumps = cbor2.dumps

    def none_hash(self) -> bytes:
        return hashlib.sha256(self._dumps(_CBOR_NONE_SEED, canonical=True)).digest()

    def next_digest(self, prefix: bytes, token_bytes: bytes, extra: bytes) -> bytes:
        tokens = array("I", token_bytes)
        if sys.byteorder == "little":
            tokens.byteswap()
        encoded = self._dumps((prefix, tuple(tokens), extra or None), canonical=True)
        return hashlib.sha256(encoded).digest()


_ALGORITHMS: dict[str, Callable[[], ChunkHashAlgorithm]] = {
    "blake3": Blake3Algorithm,
    "sha256_cbor": Sha256CborAlgorithm,
}
ALGORITHM_NAMES = tuple(_ALGORITHMS)


def make_algorithm(name: str) -> ChunkHashAlgorithm:
    try:
        return _ALGORITHMS[name]()
    except KeyError:
        raise ConfigError(f"unknown hash algorithm {name!r}; known: {', '.join(ALGORITHM_NAMES)}") from None


def chunk_digests(algorithm: ChunkHashAlgorithm, root: bytes, tokens: Sequence[int], chunk_size: int) -> list[bytes]:
    """Digests of every whole chunk of `tokens`; an incomplete tail is dropped."""
    chain = PrefixChain(algorithm, root, chunk_size)
    chain.extend(tokens)
    return chain.digests


class PrefixChain:
    """The digests of one growing prompt, each token hashed once.

    Owned by one thread. `extend` takes the whole token list so far and hashes only the
    chunks that became whole since the last call.
    """

    __slots__ = ("_algorithm", "_chunk_size", "_root", "digests")

    def __init__(self, algorithm: ChunkHashAlgorithm, root: bytes, chunk_size: int) -> None:
        if chunk_size < 1:
            raise ConfigError(f"chunk_size must be at least 1 (got {chunk_size})")
        self._algorithm = algorithm
        self._root = root
        self._chunk_size = chunk_size
        self.digests: list[bytes] = []

    def extend(self, tokens: Sequence[int], extras: Sequence[bytes] = (), num_tokens: int | None = None) -> None:
        """Hash chunks up to `num_tokens` (default: all of `tokens`).

        `extras[i]` belongs to chunk i; a missing one counts as empty. The caller must not
        change tokens or extras of chunks that were hashed before.
        """
        known = len(self.digests)
        total = (len(tokens) if num_tokens is None else num_tokens) // self._chunk_size
        if total <= known:
            return
        blob = tokens_to_bytes(tokens[known * self._chunk_size : total * self._chunk_size])
        step = self._chunk_size * TOKEN_BYTES
        next_digest, digests = self._algorithm.next_digest, self.digests
        prefix = digests[-1] if digests else self._root
        for index in range(known, total):
            start = (index - known) * step
            extra = extras[index] if index < len(extras) else b""
            prefix = next_digest(prefix, blob[start : start + step], extra)
            digests.append(prefix)

    def tail_digest(self, tail: Sequence[int], extra: bytes = b"") -> bytes:
        """The digest of what follows the chunks hashed so far, where it is not a whole chunk. The chain stays as it is.

        It names fewer tokens than a chunk has, so no whole chunk has the same one.
        """
        prefix = self.digests[-1] if self.digests else self._root
        return self._algorithm.next_digest(prefix, tokens_to_bytes(tail), extra)
