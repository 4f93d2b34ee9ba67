"""Which chunks may be stored, once an engine has loaded some that only resemble what it would compute."""

from __future__ import annotations

from lmcache.kv_copy.lossy_chunks import LossyChunks

A, B, C, D = (bytes([number]) * 32 for number in range(4))


def test_what_was_loaded_so_is_not_stored_from_the_prefix_cache() -> None:
    lossy = LossyChunks(8)
    assert lossy.exact((A, B, C), 3) == [0, 1, 2]
    lossy.add(A)
    lossy.add(C)
    assert lossy.exact((A, B, C, D), 4) == [1, 3]
    assert lossy.exact((A, B, C, D), 2) == [1, 2, 3], "the third was computed"
    assert lossy.exact((A, B, C, D), 0) == [0, 1, 2, 3]


def test_the_oldest_are_forgotten_past_as_many_as_there_are_pages_for() -> None:
    lossy = LossyChunks(2)
    for digest in (A, B, A, C):
        lossy.add(digest)
    assert lossy.exact((A, B, C), 3) == [1]
