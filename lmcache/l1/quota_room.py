"""Whose object goes when L1 needs room: tenants beyond their limit first. Works on L1's tables.

With a policy that knows no tenants this is the policy's order, and limits mean nothing. With
one that does:
1. A tenant that holds more than its limit gives up its oldest: the one that needs the room if it is
   one of them, else another.
2. A tenant that would hold more than its limit, with what it is writing, gives up its own
   oldest; it never takes room from those who keep to theirs.
3. Where all keep to their limits and the pool is full all the same, the limits promise more
   than there is: the oldest of all goes.
"""

from __future__ import annotations

from lmcache.l1.state import L1State
from lmcache.quota.manager import QuotaManager


class QuotaRoom:
    def __init__(self, state: L1State, quotas: QuotaManager) -> None:
        self._state = state
        self._quotas = quotas
        # Tenants that were beyond their limit when last looked at, by the limits of that revision; they are asked
        # again before use.
        self._beyond: dict[str, None] = {}
        self._revision = quotas.revision

    def victim(self) -> int | None:
        """The slot to evict first, whoever needs the room."""
        victim = self._victim_beyond_limits() if self._state.policy.is_per_tenant else None
        return victim if victim is not None else self._oldest()

    def victim_for(self, tenant: str, length: int) -> int | None:
        """The slot to evict for an object of that tenant; None: it gets no room."""
        if not self._state.policy.is_per_tenant:
            return self._oldest()
        victim = self.victim_of(tenant)
        if victim is None:
            victim = self._victim_beyond_limits()
        if victim is not None:
            return victim
        held = self._state.usage_bytes.get(tenant, 0) + self._state.writing_bytes.get(tenant, 0)
        if held + length > self._quotas.limit_bytes(tenant):
            return self._oldest(tenant)
        return self._oldest()

    def victim_of(self, tenant: str) -> int | None:
        """The oldest slot of a tenant that holds more than its limit; None if it does not, or all are locked."""
        return self.victim_beyond(tenant, self._quotas.limit_bytes(tenant))

    def victim_beyond(self, tenant: str, limit_bytes: int) -> int | None:
        """The same against a limit of the caller's."""
        return self._oldest(tenant) if self._state.usage_bytes.get(tenant, 0) > limit_bytes else None

    def tenants_beyond(self) -> list[str]:
        """Every tenant that holds more than its limit now."""
        if not self._state.policy.is_per_tenant:
            return []
        self._revision = self._quotas.revision
        self._beyond = dict.fromkeys(self._quotas.excess(self._state.usage_bytes))
        self._state.grown.clear()
        return list(self._beyond)

    def _victim_beyond_limits(self) -> int | None:
        """The oldest slot of a tenant beyond its limit. Those who are not any more are forgotten."""
        if self._quotas.revision != self._revision:
            self.tenants_beyond()
        self._beyond.update(self._state.grown)
        self._state.grown.clear()
        within: list[str] = []
        victim = None
        for tenant in self._beyond:
            if self._state.usage_bytes.get(tenant, 0) <= self._quotas.limit_bytes(tenant):
                within.append(tenant)
                continue
            victim = self._oldest(tenant)
            if victim is not None:
                break
        for tenant in within:
            del self._beyond[tenant]
        return victim

    def _oldest(self, tenant: str | None = None) -> int | None:
        return next(self._state.policy.victims(tenant), None)
