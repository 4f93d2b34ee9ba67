"""Sessions as a state machine: locks never leak, and each client's locked bytes are exact.

The oracle is what each request holds; L1 must hold exactly the sum of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lmcache.protocol.blobs import split_places
from tests.conftest import FakeClock, new_pool_folder
from tests.engine.conftest import DIGESTS, UNIT_BYTES, open_engine

UNITS = 8
LOCK_CHUNKS_MAX = UNITS // 2
TTL_S = 600.0
LOCK_TTL_S = 300.0  # the default time to live of a promise
SCHEDULERS = (100, 101)
PROMPTS = [DIGESTS[:5], DIGESTS[10:14], [*DIGESTS[:2], *DIGESTS[20:23]]]

CLIENT = st.sampled_from(SCHEDULERS)
REQUEST = st.sampled_from(["a", "b", "c"])
PROMPT = st.sampled_from(PROMPTS)


@dataclass
class Held:
    """Places one request was promised, in order, and when it was last heard of."""

    places: list[tuple[int, int]] = field(default_factory=list)
    last_used_s: float = 0.0


class SessionMachine(RuleBasedStateMachine):
    @initialize()
    def open(self) -> None:
        self.clock = FakeClock()
        self.harness = open_engine(new_pool_folder(), self.clock, UNITS)
        for number, uid in enumerate(SCHEDULERS):
            self.harness.worker(uid=number + 1, engine_id=f"e{number}")
            self.harness.scheduler(uid=uid, engine_id=f"e{number}")
        self.sessions: dict[tuple[int, str], Held] = {}

    @rule(prompt=PROMPT)
    def store(self, prompt: list[bytes]) -> None:
        """Both engines have one root, so both schedulers find it. It evicts what nobody holds."""
        self.harness.store(prompt)

    def held_by(self, uid: int) -> set[tuple[int, int]]:
        """Distinct places: a prefix that two requests share counts once."""
        return {place for (owner, _), held in self.sessions.items() if owner == uid for place in held.places}

    def affordable(self, uid: int, prefix: list[tuple[int, int]]) -> int:
        """Leading places of a prefix that the client's budget pays for; those it holds already are free."""
        held = self.held_by(uid)
        left = LOCK_CHUNKS_MAX - len(held)
        for number, place in enumerate(prefix):
            left -= place not in held
            if left < 0:
                return number
        return len(prefix)

    @rule(uid=CLIENT, request=REQUEST, prompt=PROMPT)
    def lookup(self, uid: int, request: str, prompt: list[bytes]) -> None:
        hint = self.harness.lookup(prompt, request, uid, lock=False)
        held = self.sessions.setdefault((uid, request), Held())
        affordable = self.affordable(uid, [(slot, word) for slot, word, _, _ in split_places(hint.places)])
        found = self.harness.lookup(prompt, request, uid)
        assert found.num_chunks == affordable
        held.places = [(slot, word) for slot, word, _, _ in split_places(found.places)]
        held.last_used_s = self.clock.now_s
        assert len(held.places) == found.num_chunks

    @rule(uid=CLIENT, request=REQUEST, num_chunks=st.integers(-1, 6))
    def release(self, uid: int, request: str, num_chunks: int) -> None:
        held = self.sessions.get((uid, request), Held())
        kept = max(0, num_chunks)
        assert self.harness.release(request, num_chunks, uid) == max(0, len(held.places) - kept)
        held.places = held.places[:kept]

    @rule(uid=CLIENT, request=REQUEST)
    def end(self, uid: int, request: str) -> None:
        was_open = self.sessions.pop((uid, request), None) is not None
        assert self.harness.end(request, uid) == was_open

    @rule(uid=CLIENT)
    def client_leaves_and_comes_back(self, uid: int) -> None:
        self.harness.engine.management.unregister(self.harness.engine.pool, uid)
        self.harness.scheduler(uid=uid, engine_id=f"e{uid - 100}")
        self.sessions = {key: held for key, held in self.sessions.items() if key[0] != uid}

    @rule(seconds=st.sampled_from([1.0, TTL_S / 2, TTL_S]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.harness.engine.evict_cycle()
        for held in self.sessions.values():
            if held.last_used_s <= self.clock.now_s - LOCK_TTL_S:
                held.places = []
        limit_s = self.clock.now_s - TTL_S
        self.sessions = {key: held for key, held in self.sessions.items() if held.last_used_s > limit_s}

    @rule(force=st.booleans())
    def clear(self, force: bool) -> None:
        self.harness.engine.clear(force)

    @invariant()
    def locks_are_what_sessions_hold(self) -> None:
        engine = self.harness.engine
        engine.pool.l1.check_integrity()
        assert len(engine.sessions) == len(self.sessions)
        for uid in SCHEDULERS:
            assert engine.sessions.locked_bytes(uid) == len(self.held_by(uid)) * UNIT_BYTES <= UNITS * UNIT_BYTES // 2
        counts = Counter(place for held in self.sessions.values() for place in held.places)
        places = [split_places(engine.pool.l1.places([slot]))[0][:2] for slot, _ in counts]
        alive = [held == now for held, now in zip(counts, places, strict=True)]
        assert engine.pool.l1.report()["read_locked_count"] == sum(alive)

    def teardown(self) -> None:
        for uid, request in list(self.sessions):
            self.harness.end(request, uid)
        assert self.harness.l1_report["read_locked_count"] == 0
        self.harness.engine.close(keep=False)


SessionMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestSessionMachine = SessionMachine.TestCase
