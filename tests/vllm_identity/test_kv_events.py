"""The log of KV events: what was stored is told, what is removed is told once, a reset removes all."""

import warnings

import pytest

A, B = b"a" * 32, b"b" * 32


@pytest.fixture
def log():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what vLLM's own imports have to say
        from lmcache.integration.vllm.kv_events import EventLog
    return EventLog()


def stored(log) -> None:
    log.stored([A, B], [None, A], [[1, 2], [3, 4]], "adapter")


def test_stored_chunks_name_parent_tokens_and_adapter(log):
    stored(log)
    first, second = log.take()
    assert type(first).__name__ == "BlockStored"
    assert (first.block_hashes, first.parent_block_hash, first.token_ids) == ([A], None, [1, 2])
    assert (second.block_hashes, second.parent_block_hash, second.lora_name) == ([B], A, "adapter")
    assert (first.medium, first.block_size) == ("LMCACHE", 2)
    assert list(log.take()) == []


def test_only_what_was_told_of_is_told_to_be_gone_and_only_once(log):
    stored(log)
    log.take()
    log.removed(A + b"x" * 32)
    log.removed(A)
    (gone,) = log.take()
    assert type(gone).__name__ == "BlockRemoved"
    assert gone.block_hashes == [A]


def test_a_reset_removes_everything_told_of(log):
    stored(log)
    log.take()
    log.all_removed()
    (gone,) = log.take()
    assert gone.block_hashes == [A, B]
    log.removed(A)
    assert list(log.take()) == []
