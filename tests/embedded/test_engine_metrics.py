"""What an engine counts while it works."""

from __future__ import annotations

import dataclasses
import pathlib

from tests.conftest import FakeClock
from tests.embedded.site import PATIENCE_S, backend, config_of, opened
from tests.embedded.test_metrics import make, shown
from tests.embedded.tiers import disk


def test_copies_and_evictions_are_counted(pool_folder: pathlib.Path) -> None:
    meter = make()
    with opened(pool_folder, config_of(num_chunks=4), meter=meter) as site:
        site.store("abcd")
        found = shown(meter)
        assert found["store_from_gpu_time_count"] == 1
        assert found["local_cpu_evict_count_total"] == 0
        site.store("abcd")
        assert shown(meter)["store_from_gpu_time_count"] == 1  # nothing was copied
        site.store("efg")
        found = shown(meter)
        assert (found["local_cpu_evict_count_total"], found["local_cpu_evict_keys_count_total"]) == (1, 3)
        assert found["local_cpu_evict_failed_count_total"] == 0
        assert site.lookup("efg") == 3 - 1  # a half of the pool may be locked
        assert site.retrieve("ef") == ""
        assert shown(meter)["retrieve_to_gpu_time_count"] == 1
        assert site.retrieve("x") != ""
        assert shown(meter)["retrieve_to_gpu_time_count"] == 1


def test_evictions_for_what_comes_from_tiers_are_counted(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    meter = make()
    with opened(pool_folder, config_of(4, backends=(disk(tmp_path),)), meter=meter) as site:
        site.store("ab")
        site.wait_until_stored()
        site.store("cdef")
        site.wait_until_stored()
        assert shown(meter)["local_cpu_evict_keys_count_total"] == 2
        assert site.lookup("ab", wait_s=PATIENCE_S) == 2
        assert shown(meter)["local_cpu_evict_keys_count_total"] == 4


def test_objects_without_room_are_counted(pool_folder: pathlib.Path) -> None:
    meter = make()
    with opened(pool_folder, config_of(num_chunks=2, lock_fraction=1.0), meter=meter) as site:
        site.store("ab")
        assert site.lookup("ab") == 2
        assert site.store("cde") == ""
        found = shown(meter)
        assert (found["local_cpu_evict_failed_count_total"], found["local_cpu_evict_keys_count_total"]) == (3, 0)


def test_lookups_that_end_by_time_are_counted(pool_folder: pathlib.Path, clock: FakeClock) -> None:
    meter = make()
    config = dataclasses.replace(config_of(), lock_ttl_s=10.0)
    with opened(pool_folder, config, clock=clock, meter=meter) as site:
        site.store("ab")
        site.lookup("a", lookup_id="one")
        site.lookup("b", lookup_id="two")
        site.engine.expire_cycle()
        assert shown(meter)["forced_unpin_count_total"] == 0
        clock.advance(11)
        site.engine.expire_cycle()
        assert shown(meter)["forced_unpin_count_total"] == 2


def test_remote_tiers_are_counted_and_the_disk_is_not(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Also after an operator opened one anew."""
    meter = make()
    tiers = (
        backend("LocalDiskBackend", type="fs", base_path=str(tmp_path / "disk")),
        backend("RemoteBackend-fs", type="fs", base_path=str(tmp_path / "remote")),
    )
    with opened(pool_folder, config_of(backends=tiers), meter=meter) as site:
        site.store("ab")
        site.wait_until_stored()
        found, num_bytes = shown(meter), 2 * site.engine.chunk_bytes
        assert (found["num_remote_write_requests_total"], found["num_remote_write_bytes_total"]) == (2, num_bytes)
        assert found["store_put_time_count"] == 1
        site.engine.recreate_backend("RemoteBackend-fs")
        site.store("cd")
        site.wait_until_stored()
        assert shown(meter)["num_remote_write_requests_total"] == 4
        site.engine.close_backend("LocalDiskBackend")
        site.engine.clear(("LocalCPUBackend",))
        assert site.lookup("ab", wait_s=PATIENCE_S) == 2
        found = shown(meter)
        assert (found["num_remote_read_requests_total"], found["num_remote_read_bytes_total"]) == (2, num_bytes)
        assert (found["remote_time_to_get_count"], found["remote_time_to_put_count"]) == (2, 4)
