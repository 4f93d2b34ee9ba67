"""The digest table against a dict, and under hashes made to collide."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lmcache.errors import IntegrityError
from lmcache.l2.digest_table import DIGEST_BYTES, DigestTable


def colliding(number: int) -> bytes:
    """Digests of which many share the bytes that are hashed."""
    return bytes([number % 3, *bytes(7), *hashlib.sha256(bytes([number])).digest()[:24]])


_entry = st.tuples(st.integers(0, 2), st.integers(0, 60).map(colliding))


class TableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = DigestTable()
        self.rows: dict[tuple[int, bytes], int] = {}

    @rule(entries=st.lists(_entry, max_size=40))
    def add(self, entries):
        for space, digest in entries:
            if (space, digest) not in self.rows:
                row = self.table.add(space, digest)
                assert row not in self.rows.values()
                self.rows[space, digest] = row

    @rule(entries=st.lists(_entry, max_size=40))
    def remove(self, entries):
        for entry in entries:
            if entry in self.rows:
                self.table.remove(self.rows.pop(entry))

    @rule(entry=_entry)
    def find(self, entry):
        assert self.table.find(*entry) == self.rows.get(entry, -1)

    @invariant()
    def agrees(self):
        self.table.check_integrity()
        assert len(self.table) == len(self.rows)
        for (space, digest), row in self.rows.items():
            assert self.table.find(space, digest) == row
            assert (self.table.space(row), self.table.digest(row), self.table.is_used(row)) == (space, digest, True)


TestTableMachine = TableMachine.TestCase


@given(st.sets(st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES), max_size=200))
def test_any_digests(digests):
    table = DigestTable()
    rows = {digest: table.add(7, digest) for digest in digests}
    assert all(table.find(7, digest) == row for digest, row in rows.items())
    assert all(table.find(8, digest) == -1 for digest in rows)
    table.check_integrity()


def test_rows_are_given_out_again():
    table = DigestTable()
    for number in range(1000):
        table.remove(table.add(0, hashlib.sha256(str(number).encode()).digest()))
    assert table.num_rows == 1
    assert not table.is_used(0)
    assert not table.is_used(1)
    assert not table.is_used(-1)


def test_a_broken_table_is_noticed():
    table = DigestTable()
    row = table.add(0, colliding(1))
    table._digests[row * DIGEST_BYTES] ^= 1
    with pytest.raises(IntegrityError):
        table.check_integrity()
