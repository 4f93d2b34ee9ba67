"""What takes part in lookups, loads and stores at one moment. Pure: replaced whole by every change."""

from __future__ import annotations

from dataclasses import dataclass

from lmcache.storage.tier_route import TierRoute

# The documented name of L1.
L1_BACKEND = "LocalCPUBackend"


@dataclass(frozen=True, slots=True)
class Routing:
    """`keeps_l1`: the switch of the hot cache. None as `retrieve_locations` or `store_location`: no restriction."""

    is_frozen: bool = False
    keeps_l1: bool = True
    bypassed: frozenset[str] = frozenset()
    retrieve_locations: frozenset[str] | None = None
    store_location: str | None = None

    @property
    def reads_l1(self) -> bool:
        """Whether what L1 holds counts in a lookup."""
        return self._may_read(L1_BACKEND)

    @property
    def keeps_stores(self) -> bool:
        """Whether new objects stay in L1; else they only pass through it."""
        return self.keeps_l1 and self._is_store_location(L1_BACKEND)

    @property
    def stores_l1(self) -> bool:
        """Whether a new object is stored even where no tier takes it."""
        return self.keeps_stores and not self.is_frozen

    @property
    def retains(self) -> bool:
        """Whether what is loaded from a tier stays in L1: not where nobody would read it there."""
        return self.keeps_l1 and not self.is_frozen and self.reads_l1

    def tier(self, name: str) -> TierRoute:
        """How the tier of that name takes part. While frozen, what waits to be stored waits on."""
        reads = not self.is_frozen and self._may_read(name)
        return TierRoute(reads, not self.is_frozen and self._is_store_location(name), self.is_frozen)

    def _may_read(self, name: str) -> bool:
        is_named = self.retrieve_locations is None or name in self.retrieve_locations
        return is_named and name not in self.bypassed

    def _is_store_location(self, name: str) -> bool:
        return name not in self.bypassed and self.store_location in (None, name)
