"""The L1 manager with quotas as a state machine: whose objects go, how many, and that bytes add up."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from lmcache.l1.values import Place
from tests.l1.test_l1_machine import LENGTH, NUM_UNITS, L1Machine

SALTS = ["", "tenant"]
SALT = st.sampled_from(SALTS)


class L1QuotaMachine(L1Machine):
    """Two tenants whose limits come and go. Who needs room pays first if it is beyond its limit."""

    policy_name = "IsolatedLRU"

    def salt_of(self, place: Place) -> str:
        return self.ready[place].name[0].cache_salt

    def held_bytes(self, salt: str) -> int:
        return LENGTH * sum(self.salt_of(place) == salt for place in self.ready)

    def oldest(self, salt: str) -> Place | None:
        return next((place for place in self.recency if self.salt_of(place) == salt), None)

    def is_beyond(self, salt: str) -> bool:
        return self.held_bytes(salt) > self.quotas.limit_bytes(salt)

    def victim_for(self, salt: str) -> Place | None:
        for tenant in (salt, *SALTS):
            if self.is_beyond(tenant) and (victim := self.oldest(tenant)) is not None:
                return victim
        writing = sum(write.name is not None and write.name[0].cache_salt == salt for write in self.writes.values())
        if self.held_bytes(salt) + (writing + 1) * LENGTH > self.quotas.limit_bytes(salt):
            return self.oldest(salt)
        return self.recency[0] if self.recency else None

    @rule(salt=SALT, units=st.integers(0, NUM_UNITS), slack=st.sampled_from([0, LENGTH // 2]))
    def set_quota(self, salt: str, units: int, slack: int) -> None:
        self.quotas.set(salt, units * LENGTH + slack)

    @rule(salt=SALT)
    def remove_quota(self, salt: str) -> None:
        self.quotas.remove(salt)

    @rule(salt=SALT, num_objects_max=st.integers(1, NUM_UNITS))
    def evict_excess(self, salt: str, num_objects_max: int) -> None:
        """Only the excess, the oldest first, and never what is locked."""
        assert set(self.l1.tenants_beyond_limit()) == {tenant for tenant in SALTS if self.is_beyond(tenant)}
        before, num_gone = self.held_bytes(salt), 0
        while num_gone < num_objects_max and self.is_beyond(salt) and (victim := self.oldest(salt)) is not None:
            num_gone += self.evict(victim)
        limit = self.quotas.limit_bytes(salt)
        assert self.l1.evict_excess(salt, limit, num_objects_max) == (num_gone, before - self.held_bytes(salt))

    @precondition(lambda self: sum(self.is_beyond(salt) for salt in SALTS) < 2)
    @rule(units=st.integers(0, NUM_UNITS), num_objects_max=st.integers(1, 8))
    def evict_to(self, units: int, num_objects_max: int) -> None:
        """Those beyond their limit go first here, too."""
        expected = 0
        while expected < num_objects_max and len(self.ready) + len(self.writes) > units and self.recency:
            beyond = [victim for tenant in SALTS if self.is_beyond(tenant) and (victim := self.oldest(tenant))]
            expected += self.evict((beyond or self.recency)[0])
        assert self.l1.evict_to(units * 4096, num_objects_max) == expected


L1QuotaMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestL1QuotaMachine = L1QuotaMachine.TestCase
