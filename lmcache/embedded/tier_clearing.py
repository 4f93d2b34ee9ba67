"""Clearing a tier: what its adapter lists is deleted, a page at a time. Blocks; knows no names of backends."""

from __future__ import annotations

from lmcache.l2.base import KeyPage, L2Adapter
from lmcache.storage.tier import Tier

_PAGE_KEYS = 1000
# Some backends list less than they hold while they are being deleted from.
_ROUNDS_MAX = 10


def clear_tier(tier: Tier) -> int:
    """Delete every object that nobody has leased; how many. Only what the adapter calls its own is listed, so the
    rest of a shared backend is safe. Raises L2Error."""
    tier.call(lambda adapter: adapter.tick())  # see what other processes stored lately
    num_removed = 0
    for _ in range(_ROUNDS_MAX):
        num_more = _clear_round(tier)
        num_removed += num_more
        if not num_more:
            break
    return num_removed


def _clear_round(tier: Tier) -> int:
    num_removed, token = 0, None
    while True:
        page = _page(tier, token)
        keys = [key for key, _ in page.entries]
        if keys:
            num_removed += len(tier.call(lambda adapter, keys=keys: adapter.delete(keys)).deleted)  # type: ignore[misc]
        token = page.next_page_token
        if token is None:
            return num_removed


def _page(tier: Tier, token: str | None) -> KeyPage:
    def read(adapter: L2Adapter) -> KeyPage:
        return adapter.list_l2_keys(None, _PAGE_KEYS, token)

    return tier.call(read)
