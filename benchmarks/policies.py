"""Eviction policies replayed on traces: the share of asked blocks found as a leading prefix.

`python -m benchmarks.policies TRACE...` prints it per policy and cache size. A trace holds a
JSON object a line with `hash_ids`, one id per block, equal where the prefix up to it is equal
(the form of the Mooncake project's traces); it may be gzipped. Pure simulation: one object a block, all of one
length; no pool, no server.
"""

from __future__ import annotations

import argparse
import gzip
import json
import pathlib
from collections.abc import Iterable, Sequence

from benchmarks.common import Row, print_rows
from lmcache.eviction import make_policy, policy_names
from lmcache.eviction.base import EvictionPolicy

Request = Sequence[int]
SHARES = (0.03, 0.10)


class Replay:
    """A cache of `num_slots` blocks in front of requests, as L1 is: tail first, evicting what is needed."""

    def __init__(self, policy: EvictionPolicy, num_slots: int) -> None:
        self._policy = policy
        self._slot_of: dict[int, int] = {}
        self._block_in: list[int] = [-1] * num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self.num_asked = 0
        self.num_hit = 0

    def ask(self, request: Request, tenant: str = "") -> None:
        """Look a prompt up, hold its hit, let go of it, store the rest, end."""
        policy, slot_of = self._policy, self._slot_of
        hits: list[int] = []
        for block in request:
            slot = slot_of.get(block)
            if slot is None:
                break
            hits.append(slot)
        self.num_asked += len(request)
        self.num_hit += len(hits)
        for slot in hits:
            policy.hold(slot)
        policy.touch(self._in_order(hits))
        for slot in self._in_order(hits):
            policy.release(slot)
        self._store(request[len(hits) :], tenant)
        policy.refresh(self._in_order([slot_of[block] for block in request if block in slot_of]))

    def _in_order(self, slots: list[int]) -> Iterable[int]:
        """From tail to head, so that a prompt loses its leaves first."""
        return reversed(slots)

    def _store(self, blocks: Request, tenant: str) -> None:
        self._commit(self._reserve(blocks), tenant)

    def _reserve(self, blocks: Request) -> list[int]:
        reserved: list[int] = []
        for block in blocks:
            if block not in self._slot_of and (self._free or self._evict()):
                slot = self._free.pop()
                self._slot_of[block] = slot
                self._block_in[slot] = block
                reserved.append(slot)
        return reserved

    def _commit(self, slots: list[int], tenant: str) -> None:
        for slot in self._in_order(slots):
            self._policy.add(slot, self._block_in[slot], tenant)

    def _evict(self) -> bool:
        victim = next(self._policy.victims(), None)
        if victim is None:
            return False
        self._policy.remove(victim, is_evicted=True)
        del self._slot_of[self._block_in[victim]]
        self._free.append(victim)
        return True


def read_trace(path: pathlib.Path) -> list[Request]:
    content = path.read_bytes()
    lines = (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
    return [json.loads(line)["hash_ids"] for line in lines]


def num_unique(requests: Iterable[Request]) -> int:
    return len({block for request in requests for block in request})


def hit_rate(name: str, requests: Sequence[Request], num_slots: int, kind: type[Replay] = Replay) -> float:
    replay = kind(make_policy(name), num_slots)
    for request in requests:
        replay.ask(request)
    return replay.num_hit / replay.num_asked


def main(paths: Sequence[pathlib.Path], shares: Sequence[float] = SHARES) -> list[Row]:
    rows = []
    for path in paths:
        requests = read_trace(path)
        num_blocks = num_unique(requests)
        for share in shares:
            for name in policy_names():
                rate = hit_rate(name, requests, int(num_blocks * share))
                rows.append(Row(f"{path.stem}, {share:.0%} of {num_blocks:,} blocks, {name}", f"{rate:.3f}"))
    print_rows("prefix blocks found", rows)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description=__doc__.splitlines()[0])
    parser.add_argument("traces", nargs="+", type=pathlib.Path, metavar="TRACE")
    parser.add_argument("--share", type=float, action="append", help="cache size as a share of all blocks")
    given = parser.parse_args()
    main(given.traces, given.share or SHARES)
