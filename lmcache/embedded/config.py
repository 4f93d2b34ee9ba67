"""What an embedded engine is told, in its own terms. Knows no file, variable or key of users."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmcache.core.keys import make_kv_rank
from lmcache.core.layout import KVLayout
from lmcache.l1.namespace import RankGroup
from lmcache.l2.registry import L2AdapterSpec
from lmcache.storage.breaker import BreakerConfig


@dataclass(frozen=True, slots=True)
class Backend:
    """A tier below L1, under the name that operators know it by."""

    name: str
    adapter: L2AdapterSpec


@dataclass(frozen=True, slots=True)
class EmbeddedConfig:
    """`keeps_l1` False: L1 is only where objects pass through on their way to and from the tiers.

    `reserve_bytes` of memory are left free by the pool. `lock_fraction`: the share of the pool that
    lookups may hold. `drain_timeout_s`: how long the end of the process waits for stores to the tiers.
    `blocking_timeout_s`: how long a load waits for chunks that only the tiers have. `retrieve_locations` and
    `store_location` name the only backends that lookups and loads, or stores, go to; None: all. A running engine
    follows all but the sizes, the fraction and the algorithm (`EmbeddedEngine.follow`).
    """

    chunk_size: int = 256
    pool_bytes: int = 5 << 30
    reserve_bytes: int = 0
    keeps_l1: bool = True
    eviction_policy: str = "LRU"
    backends: tuple[Backend, ...] = ()
    lock_ttl_s: float = 300.0
    lock_check_interval_s: float = 30.0
    lock_fraction: float = 0.5
    drain_timeout_s: float = 3.0
    blocking_timeout_s: float = 10.0
    retrieve_locations: tuple[str, ...] | None = None
    store_location: str | None = None
    hash_algorithm: str = "blake3"
    breaker: BreakerConfig = field(default_factory=BreakerConfig)


@dataclass(frozen=True, slots=True)
class Rank:
    """Whose pages these are. `source_rank`: the rank under whose key its objects are known, another one where
    ranks hold equal bytes (MLA); then that one alone writes to the tiers."""

    model_name: str
    world_size: int
    rank: int
    source_rank: int
    layout: KVLayout

    @property
    def writes_to_tiers(self) -> bool:
        return self.rank == self.source_rank

    @property
    def rank_group(self) -> RankGroup:
        return make_kv_rank(self.world_size, self.source_rank, self.world_size, self.source_rank), 0
