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
    return [tiny] * 4 + [tiny_ranks] * 3 + [roomy] * 3 + [roomy_ranks] * 2


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

    def total(name):
        return sum(getattr(report, name) for report in reports)

    print(f"{faults.total()} faults at {len(faults)} kinds of step, {total('num_restarts')} server starts")
    print(f"{total('num_acknowledged')} chunks acknowledged")
    print(f"loads: {total('num_loads_ok')} whole, {total('num_loads_failed')} failed")
    assert faults.total() >= NUM_ROUNDS
    assert total("num_loads_ok") > NUM_ROUNDS
