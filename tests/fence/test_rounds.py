"""A thousand random faults, in several arenas at once: not one wrong byte, no lost slot, no lost object.

`LMCACHE_TEST_SEED` repeats the choices of a run (not its timing), `LMCACHE_TEST_ROUNDS` its length.
"""

import collections
import os
import random
from concurrent.futures import ThreadPoolExecutor

from lmcache.testing.arena import Arena, ArenaConfig
from lmcache.testing.nursery import can_make_pid_namespaces
from lmcache.testing.site import Site

NUM_ROUNDS = int(os.environ.get("LMCACHE_TEST_ROUNDS", "1000"))


def arena_configs():
    """Tiny pools where everything is always evicted, for one rank and two; and roomy ones that must forget nothing."""
    apart = can_make_pid_namespaces()
    tiny = ArenaConfig(num_slots=40, num_prompts=12, uses_namespaces=apart)
    tiny_ranks = ArenaConfig(num_slots=60, num_prompts=8, num_ranks=2, num_engines=3, uses_namespaces=apart)
    roomy = ArenaConfig(num_slots=1600, num_prompts=300, is_roomy=True)
    roomy_ranks = ArenaConfig(num_slots=1600, num_prompts=150, num_ranks=2, num_engines=3, is_roomy=True)
    return [tiny, tiny, tiny, tiny_ranks, tiny_ranks, roomy, roomy, roomy_ranks]


def fight(nursery, config, seed, num_rounds):
    with Site(nursery) as site:
        arena = Arena(nursery, config, site.folder, site.url, seed)
        try:
            return arena.run(num_rounds)
        finally:
            arena.close()


def test_rounds(nursery):
    seed = os.environ.get("LMCACHE_TEST_SEED") or str(random.SystemRandom().getrandbits(32))
    print(f"LMCACHE_TEST_SEED={seed}")
    configs = arena_configs()
    num_rounds = -(-NUM_ROUNDS // len(configs))
    with ThreadPoolExecutor(len(configs)) as pool:
        fights = [
            pool.submit(fight, nursery, config, f"{seed}/{number}", num_rounds) for number, config in enumerate(configs)
        ]
        reports = [future.result() for future in fights]
    faults = sum((report.faults for report in reports), collections.Counter())
    print(
        f"{faults.total()} faults at {len(faults)} kinds of step, {sum(report.num_restarts for report in reports)} server "
        f"starts, {sum(report.num_acknowledged for report in reports)} chunks acknowledged, loads: "
        f"{sum(report.num_loads_ok for report in reports)} whole, {sum(report.num_loads_failed for report in reports)} failed"
    )
    assert faults.total() >= NUM_ROUNDS
    assert sum(report.num_loads_ok for report in reports) > NUM_ROUNDS
