"""How a tier takes part at one moment. Pure: replaced whole."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TierRoute:
    """`reads`: lookups and loads go there; `stores`: new objects do. `is_frozen`: what waits to be stored waits
    on, and nothing is evicted; without it, what waits for a tier that takes no stores is dropped. `position`: its
    place in the order of search; by default the order in which tiers came."""

    reads: bool = True
    stores: bool = True
    is_frozen: bool = False
    position: int = 0
