"""Chunk hashing: the documented vectors, an independent computation, the same in every process."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from lmcache.core.hashing import ALGORITHM_NAMES, chunk_digests, make_algorithm, tokens_to_bytes
from lmcache.errors import ConfigError, TokenRangeError

NONE_HASH = "7e3eff9ef7613a50340eb12677ee03b83ac759fcba9bb32705f07248d56d473b"
TEN_TOKENS_BY_FOUR = [
    "a2981a4d792b45f791d784bfd025148836ce3032f546cc490ef9fb7db9e639de",
    "f76a7280af54e664fff4e1239c4a72936fedc49ba027e3a969a314ae980dbfd5",
]
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=40)

_DIGESTS_OF_A_PROCESS = """
import json, sys
from lmcache.core.hashing import chunk_digests, make_algorithm
from lmcache.core.identity import make_root
algorithm = make_algorithm(sys.argv[1])
facts = {name: name * 2 for name in set("model revision dtype quantization".split())}
root = make_root(algorithm, facts, [], 4)
print(json.dumps([d.hex() for d in [root, *chunk_digests(algorithm, root, list(range(50)), 4)]]))
"""


def cbor(value: object) -> bytes:
    """Canonical CBOR of what a chunk hash needs, written from RFC 8949, without a library."""

    def head(major: int, number: int) -> bytes:
        if number < 24:
            return bytes([major << 5 | number])
        for code, form, limit in ((24, ">B", 8), (25, ">H", 16), (26, ">I", 32)):
            if number < 1 << limit:
                return bytes([major << 5 | code]) + struct.pack(form, number)
        raise ValueError(number)

    if value is None:
        return b"\xf6"
    if isinstance(value, int):
        return head(0, value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    assert isinstance(value, tuple)
    return head(4, len(value)) + b"".join(cbor(part) for part in value)


def test_blake3_none_hash_is_the_documented_one() -> None:
    assert make_algorithm("blake3").none_hash().hex() == NONE_HASH


def test_ten_tokens_by_four_give_the_documented_digests_and_drop_the_tail() -> None:
    algorithm = make_algorithm("blake3")
    digests = chunk_digests(algorithm, algorithm.none_hash(), range(10), 4)
    assert [digest.hex() for digest in digests] == TEN_TOKENS_BY_FOUR


@given(prefix=st.binary(min_size=32, max_size=32), tokens=TOKENS, extra=st.binary(max_size=20))
def test_blake3_hashes_prefix_tokens_and_extra_as_documented(prefix: bytes, tokens: list[int], extra: bytes) -> None:
    expected = blake3(prefix + b"".join(struct.pack(">I", token) for token in tokens) + extra).digest()
    assert make_algorithm("blake3").next_digest(prefix, tokens_to_bytes(tokens), extra) == expected


@given(prefix=st.binary(min_size=32, max_size=32), tokens=TOKENS, extra=st.binary(max_size=300))
def test_sha256_cbor_agrees_with_cbor_written_by_hand(prefix: bytes, tokens: list[int], extra: bytes) -> None:
    expected = hashlib.sha256(cbor((prefix, tuple(tokens), extra or None))).digest()
    assert make_algorithm("sha256_cbor").next_digest(prefix, tokens_to_bytes(tokens), extra) == expected


def test_sha256_cbor_none_hash_agrees_with_cbor_written_by_hand() -> None:
    assert make_algorithm("sha256_cbor").none_hash() == hashlib.sha256(cbor("vllm-none-hash")).digest()


@given(TOKENS)
def test_tokens_are_packed_big_endian(tokens: list[int]) -> None:
    assert tokens_to_bytes(tokens) == b"".join(struct.pack(">I", token) for token in tokens)


@pytest.mark.parametrize("token", [-1, 2**32, 2**64, 1.5, "7", None])
def test_a_token_that_is_no_unsigned_32_bit_number_is_refused(token: object) -> None:
    with pytest.raises(TokenRangeError, match="from 0 to 2"):
        tokens_to_bytes([1, token])


def test_the_largest_and_smallest_tokens_are_taken() -> None:
    assert tokens_to_bytes([0, 2**32 - 1]) == b"\0\0\0\0\xff\xff\xff\xff"


def test_an_unknown_algorithm_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="blake3, sha256_cbor"):
        make_algorithm("md5")


@pytest.mark.parametrize("name", ALGORITHM_NAMES)
def test_digests_are_the_same_in_every_process(name: str, start_child) -> None:
    seeds = ("0", "1", "4242", "random")
    children = [start_child(_DIGESTS_OF_A_PROCESS, name, PYTHONHASHSEED=seed) for seed in seeds]
    answers = [json.loads(child.read_line()) for child in children]
    assert len(answers[0]) == 13
    assert all(answer == answers[0] for answer in answers)


def test_algorithms_do_not_share_digests() -> None:
    digests = [chunk_digests(make_algorithm(name), bytes(32), range(8), 4) for name in ALGORITHM_NAMES]
    assert not set(digests[0]) & set(digests[1])
