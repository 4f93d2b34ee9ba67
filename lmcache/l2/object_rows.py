"""Keys and sizes of objects in rows, compactly: an index refers to each object by the number of its row.

Not thread-safe: whoever owns the rows guards them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from lmcache.core.keys import ObjectKey
from lmcache.l2.digest_table import DIGEST_BYTES, DigestTable
from lmcache.l2.object_batch import ObjectBatch, Space


class ObjectRows:
    """A removed row is used again; others never move."""

    def __init__(self) -> None:
        self._table = DigestTable()
        self._sizes = array("Q")
        self._spaces: list[Space] = []
        self._space_ids: dict[Space, int] = {}

    def __len__(self) -> int:
        return len(self._table)

    @property
    def num_rows(self) -> int:
        """One more than the last row that was ever used."""
        return self._table.num_rows

    def find(self, key: ObjectKey) -> int:
        """The row of a key, or -1."""
        space_id = self._space_ids.get(_space_of(key))
        if space_id is None or len(key.chunk_hash) != DIGEST_BYTES:
            return -1
        return self._table.find(space_id, key.chunk_hash)

    def add(self, key: ObjectKey, num_bytes: int) -> int:
        """The row of a key that has none yet."""
        space = _space_of(key)
        space_id = self._space_ids.get(space)
        if space_id is None:
            space_id = self._space_ids[space] = len(self._spaces)
            self._spaces.append(space)
        row = self._table.add(space_id, key.chunk_hash)
        if row == len(self._sizes):
            self._sizes.append(num_bytes)
        else:
            self._sizes[row] = num_bytes
        return row

    def fill(self, batch: ObjectBatch) -> None:
        """Take up a whole batch, in its order, where there was nothing before; the batch is used up."""
        self._spaces = batch.spaces
        self._space_ids = {space: number for number, space in enumerate(batch.spaces)}
        self._sizes = batch.sizes
        self._table.fill(batch.space_ids, batch.digests)

    def remove(self, row: int) -> None:
        self._table.remove(row)

    def is_used(self, row: int) -> bool:
        return self._table.is_used(row)

    def key(self, row: int) -> ObjectKey:
        return self.space(row).key(self._table.digest(row))

    def space(self, row: int) -> Space:
        return self._spaces[self._table.space(row)]

    def size(self, row: int) -> int:
        return self._sizes[row]

    def policy_hash(self, row: int) -> int:
        """What an eviction policy knows an object by, should it come back."""
        return int.from_bytes(self._table.digest(row)[:8], "little") ^ self._table.space(row)

    def columns(self, rows: list[int]) -> Iterator[tuple[int, int, str]]:
        """Row, policy hash and tenant of many rows."""
        spaces = self._spaces
        for row, space_id, start in zip(rows, *self._table.columns(rows), strict=True):
            yield row, start ^ space_id, spaces[space_id].cache_salt

    def rows_of_model(self, start: int, stop: int, model_name: str | None) -> Iterator[int]:
        """The rows in use of a model, or of all."""
        for row in range(start, stop):
            space_id = self._table.space(row)
            if space_id >= 0 and model_name in (None, self._spaces[space_id].model_name):
                yield row

    def keys_starting_with(self, first_byte: int) -> list[tuple[Space, bytes]]:
        """Spaces and hashes of the keys whose hash starts with that byte."""
        return [(self.space(row), self._table.digest(row)) for row in self._table.rows_starting_with(first_byte)]

    def check_integrity(self) -> None:
        self._table.check_integrity()


def _space_of(key: ObjectKey) -> Space:
    return Space(key.model_name, key.kv_rank, key.object_group_id, key.cache_salt)
