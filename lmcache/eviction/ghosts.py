"""What a policy remembers of keys that are gone: their 64-bit hashes, oldest first.

28 bytes a ghost: nodes in a list over columns, found through chains of buckets. As a dict
a million ghosts would take more memory than the objects they recall.
"""

from __future__ import annotations

from array import array

from lmcache.eviction.slot_lists import END, SlotLinks, SlotList, grow

KEY_HASH_MASK = (1 << 64) - 1
_NUM_BUCKETS_MIN = 1024


class Ghosts:
    """A set of key hashes in the order of their arrival. One owner, not thread-safe."""

    def __init__(self) -> None:
        self._links = SlotLinks()
        self._order = SlotList(self._links)
        self._hashes = array("Q")
        self._chain = array("i")  # the next node in the same bucket, plus 1; 0: none
        self._buckets = array("i", bytes(4 * _NUM_BUCKETS_MIN))  # the first node, plus 1; 0: none
        self._free = array("i")
        self._num_nodes = 0

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, key_hash: int) -> bool:
        return self._find(key_hash) != END

    def add(self, key_hash: int) -> None:
        """Remember a key as the one that went last."""
        self.discard(key_hash)
        if len(self._order) >= len(self._buckets):
            self._rehash(2 * len(self._buckets))
        node = self._free.pop() if self._free else self._new_node()
        self._hashes[node] = key_hash
        self._chain_in(node)
        self._order.append(node)

    def discard(self, key_hash: int) -> bool:
        """Forget a key; whether it was remembered."""
        node = self._find(key_hash)
        if node == END:
            return False
        self._forget(node)
        return True

    def trim(self, num_max: int) -> None:
        """Forget the oldest until at most so many are left."""
        while len(self._order) > max(num_max, 0):
            self._forget(self._order.first)

    def _new_node(self) -> int:
        node = self._num_nodes
        self._num_nodes += 1
        self._links.reach(node)
        grow(self._num_nodes, self._hashes, self._chain)
        return node

    def _find(self, key_hash: int) -> int:
        hashes, chain = self._hashes, self._chain
        node = self._buckets[key_hash & (len(self._buckets) - 1)] - 1
        while node >= 0 and hashes[node] != key_hash:
            node = chain[node] - 1
        return node

    def _chain_in(self, node: int) -> None:
        bucket = self._hashes[node] & (len(self._buckets) - 1)
        self._chain[node] = self._buckets[bucket]
        self._buckets[bucket] = node + 1

    def _forget(self, node: int) -> None:
        bucket, chain = self._hashes[node] & (len(self._buckets) - 1), self._chain
        at = self._buckets[bucket] - 1
        if at == node:
            self._buckets[bucket] = chain[node]
        else:
            while chain[at] - 1 != node:
                at = chain[at] - 1
            chain[at] = chain[node]
        self._order.unlink(node)
        self._free.append(node)

    def _rehash(self, num_buckets: int) -> None:
        self._buckets = array("i", bytes(4 * num_buckets))
        for node in self._order:
            self._chain_in(node)
