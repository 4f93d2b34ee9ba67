"""KVLayout arithmetic, and sizes as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.core.sizes import GIB, KIB, MIB, align_up, format_bytes
from lmcache.errors import DeclinedError

LAYOUT = KVLayout(
    16, 100,
    (KernelGroup(("a", "b"), 1024, "bfloat16", (100, 2, 16, 16)), KernelGroup(("c",), 512, "uint8", (100, 1, 16, 32))),
    "F", "p",
)  # fmt: skip


def test_bytes_add_up_over_groups() -> None:
    assert LAYOUT.num_layers == 3
    assert LAYOUT.block_bytes == 2 * 1024 + 512
    assert LAYOUT.bytes_per_token == 160
    assert LAYOUT.blocks_per_chunk(256) == 16
    assert LAYOUT.chunk_bytes(256) == 16 * 2560


@pytest.mark.parametrize(("chunk_size", "remedy"), [(250, 240), (8, 16), (17, 16)])
def test_a_chunk_that_cuts_a_block_is_declined_with_both_numbers_and_a_remedy(chunk_size: int, remedy: int) -> None:
    with pytest.raises(DeclinedError) as declined:
        LAYOUT.chunk_bytes(chunk_size)
    text = str(declined.value)
    assert f"chunk size {chunk_size}" in text
    assert "block size 16" in text
    assert f"--chunk-size {remedy}" in text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (12, "12 B"),
        (KIB, "1 KiB"),
        (64 * MIB, "64 MiB"),
        (3 * GIB // 2, "1.5 GiB"),
        (2048 * GIB, "2.0 TiB"),
    ],
)
def test_sizes_read_as_people_write_them(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@given(value=st.integers(0, 2**62), alignment=st.integers(1, 2**20))
def test_align_up_is_the_next_multiple(value: int, alignment: int) -> None:
    aligned = align_up(value, alignment)
    assert aligned % alignment == 0
    assert 0 <= aligned - value < alignment
