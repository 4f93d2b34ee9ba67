"""What a lossy tier left in L1 goes to no tier."""

from __future__ import annotations

import dataclasses

from tests.storage.test_manager import MEMORY, OpenSite, open_site, wait_until

__all__ = ["open_site"]


def test_a_lossy_object_is_written_nowhere_and_counted(open_site: OpenSite) -> None:
    site = open_site(MEMORY)
    lossy, exact = site.pool.put(1), site.pool.put(2)
    site.pool.l1.held[lossy] = dataclasses.replace(site.pool.l1.held[lossy], is_lossy=True)
    site.manager.stores.submit(site.pool, [lossy, exact], "", "")  # type: ignore[arg-type]
    assert site.manager.stores.wait_until_empty(30)
    assert site.held() == {2}
    wait_until(lambda: dict(site.manager.metrics.store_dropped.values()) == {("memory", "lossy"): 1})
    assert site.pool.l1.removed == [], "it stays where it is"
