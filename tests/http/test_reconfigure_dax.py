"""Every DAX operation over HTTP, on the real application with a real adapter over files."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lmcache.core.sizes import GIB
from lmcache.l2.dax.adapter import DaxL2Adapter
from lmcache.l2.dax.slots import stride_of
from tests.http.storage_site import MOCK, StorageSite, make_key, storage_site

SLOT_BYTES = 4096
STRIDE = stride_of(SLOT_BYTES)
KEYS = [make_key(number) for number in range(8)]
_SIZE_HELP = "size must be a positive integer byte count or a string like '100GiB'"
_DEVICE_FIELDS = {
    "is_healthy", "device_path", "max_dax_size_bytes", "slot_bytes", "max_slots", "live_slot_count", "locked_key_count",
    "borrowed_slot_count", "active_read_count", "active_write_count", "closing", "supports_restart_recovery", "index",
    "device_id", "state", "inflight_store_tasks", "inflight_lookup_tasks", "inflight_load_tasks",
}  # fmt: skip
_STATUS_FIELDS = {
    "is_healthy", "type", "device_path", "max_dax_size_bytes", "slot_bytes", "live_slot_count", "locked_key_count",
    "borrowed_slot_count", "inflight_store_tasks", "inflight_lookup_tasks", "inflight_load_tasks", "closing",
    "supports_restart_recovery", "hotplug_enabled", "devices", "num_devices",
}  # fmt: skip


class DaxSite:
    """Files `a`, `b` and `c` of eight slots; the adapter starts with three slots of `a`."""

    def __init__(self, site: StorageSite, folder: pathlib.Path) -> None:
        self.site = site
        self.folder = folder

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def post(self, operation: str, **body: object) -> httpx.Response:
        return self.site.ask("POST", f"/reconfigure/dax/{operation}", json=body)

    def done(self, operation: str, **body: object) -> dict[str, Any]:
        answer = self.post(operation, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, operation: str, **body: object) -> tuple[int, dict[str, Any]]:
        answer = self.post(operation, **body)
        return answer.status_code, answer.json()

    @property
    def adapter(self) -> DaxL2Adapter:
        adapter = self.site.tier("dax").adapter
        assert isinstance(adapter, DaxL2Adapter)
        return adapter

    def put(self, count: int) -> None:
        self.site.put(KEYS[:count], b"x" * SLOT_BYTES, "dax")

    def devices(self) -> list[dict[str, Any]]:
        entry = self.site.ask("GET", "/reconfigure/dax/status").json()["adapters"][0]
        devices: list[dict[str, Any]] = entry["status"]["devices"]
        return devices


def make_files(folder: pathlib.Path) -> None:
    for name in "abc":
        (folder / name).write_bytes(bytes(8 * STRIDE))


def spec(folder: pathlib.Path, **fields: object) -> str:
    device = {"device_path": str(folder / "a"), "max_dax_size_gb": 3 * STRIDE / GIB}
    return json.dumps({"type": "dax", "slot_bytes": SLOT_BYTES, **device, **fields})


@pytest.fixture
def dax(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[DaxSite]:
    make_files(tmp_path)
    with storage_site(pool_folder, [MOCK, spec(tmp_path, hotplug_enabled=True)]) as site:
        yield DaxSite(site, tmp_path)


class TestStatus:
    def test_the_backend(self, dax: DaxSite) -> None:
        dax.put(2)
        answer = dax.site.ask("GET", "/reconfigure/dax/status").json()
        [entry] = answer["adapters"]
        devices = entry["status"].pop("devices")
        assert answer == {"enabled": True, "backend": "dax", "num_adapters": 1, "adapters": [entry]}
        assert entry == {
            "adapter_index": 0, "l2_adapter_index": 1, "backend": "dax",
            "supported_operations": ["status", "add", "remove", "resize"],
            "status": {
                "hotplug_enabled": True, "slot_bytes": SLOT_BYTES, "total_capacity_bytes": 3 * SLOT_BYTES,
                "total_used_bytes": 2 * SLOT_BYTES,
            },
        }  # fmt: skip
        assert set(devices[0]) == _DEVICE_FIELDS
        assert dax.site.ask("GET", "/reconfigure/dax/l2/status").json()["num_adapters"] == 1

    def test_the_adapter_in_the_server_status(self, dax: DaxSite) -> None:
        dax.put(1)
        report = dax.site.ask("GET", "/status").json()["storage_manager"]["l2_adapters"][1]
        assert set(report) >= _STATUS_FIELDS
        assert (report["type"], report["is_healthy"], report["live_slot_count"]) == ("dax", True, 1)
        assert set(report["devices"][0]) == _DEVICE_FIELDS

    def test_the_listing(self, dax: DaxSite) -> None:
        dax.put(3)
        assert len(dax.site.listed("adapter=dax")) == 3
        assert dax.site.delete(KEYS[:3], "?adapter=dax").json()["ok"] is True
        assert dax.devices()[0]["live_slot_count"] == 0


class TestAdd:
    def test_one_and_again(self, dax: DaxSite) -> None:
        body = {"device_path": f" {dax.path('b')} ", "size": 2 * STRIDE}
        answer = dax.done("add", **body)
        device = answer.pop("device")
        assert answer == {"status": "ok", "operation": "add", "adapter_index": 0}
        assert set(device) == _DEVICE_FIELDS
        assert (device["device_path"], device["index"], device["state"]) == (dax.path("b"), 1, "active")
        assert device["max_dax_size_bytes"] == 2 * STRIDE
        assert dax.done("add", **body)["device"] == device
        assert len(dax.devices()) == 2

    @pytest.mark.parametrize("size", [STRIDE * 4, "32k", "32 KiB", " 32768 ", "0.03125mb", "32KB"])
    def test_sizes_in_words(self, dax: DaxSite, size: object) -> None:
        assert dax.done("add", device_path=dax.path("b"), size=size)["device"]["max_dax_size_bytes"] == 32768

    def test_under_the_later_path(self, dax: DaxSite) -> None:
        answer = dax.site.ask(
            "POST", "/reconfigure/DAX/l2/Add", json={"device_path": dax.path("b"), "size": STRIDE}
        )  # fmt: skip
        assert answer.status_code == 200

    def test_refusals(self, dax: DaxSite) -> None:
        b = dax.path("b")
        assert dax.refused("add", device_path=dax.path("a"), size=STRIDE) == (
            409, {"error": "device_path already active with a different size"},
        )  # fmt: skip
        for size in (0, -1, "x", "1e3", ""):
            assert dax.refused("add", device_path=b, size=size) == (400, {"error": _SIZE_HELP})
        status, answer = dax.refused("add", device_path=b, size=STRIDE - 1)
        assert (status, answer["error"][:34]) == (400, "size_bytes does not fit one slot (")
        status, answer = dax.refused("add", device_path=b, size="1GiB")
        assert (status, answer["error"][:26]) == (400, "failed to map DAX device: ")
        status, answer = dax.refused("add", device_path="  ", size=STRIDE)
        assert status == 400
        assert "device_path" in answer["error"]
        assert dax.refused("add", device_path=b, size=STRIDE, adapter_index=1) == (
            404, {"error": "dax adapter not found"},
        )  # fmt: skip
        for wrong in ({}, {"device_path": b}, {"device_path": b, "size": 1.5}, {"device_path": b, "size": 1, "x": 1}):
            assert dax.refused("add", **wrong)[0] == 422
        assert len(dax.devices()) == 1


class TestRemove:
    def test_drain(self, dax: DaxSite) -> None:
        assert dax.done("remove", device_path=dax.path("a"), mode="drain") == {
            "status": "ok", "operation": "drain", "adapter_index": 0, "device_path": dax.path("a"), "index": 0,
            "state": "draining",
        }  # fmt: skip
        assert dax.devices()[0]["state"] == "draining"

    def test_migrate(self, dax: DaxSite) -> None:
        dax.put(3)
        dax.done("add", device_path=dax.path("b"), size=3 * STRIDE)
        assert dax.done("remove", device_path=dax.path("a")) == {
            "status": "ok", "operation": "remove", "adapter_index": 0, "device_path": dax.path("a"), "index": 0,
            "moved_keys": 3, "moved_bytes": 3 * SLOT_BYTES, "deleted_keys": 0, "source_slots_freed": 3,
            "state": "removed",
        }  # fmt: skip
        assert [device["state"] for device in dax.devices()] == ["removed", "active"]
        assert len(dax.site.listed("adapter=dax")) == 3
        for key in KEYS[:3]:
            assert bytes(dax.adapter.load_whole(key)) == b"x" * SLOT_BYTES

    def test_evict(self, dax: DaxSite) -> None:
        dax.put(3)
        answer = dax.done("remove", device_path=dax.path("a"), mode="evict")
        assert (answer["moved_keys"], answer["deleted_keys"], answer["source_slots_freed"]) == (0, 3, 3)
        assert dax.site.listed("adapter=dax") == []

    def test_blocked_then_forced(self, dax: DaxSite) -> None:
        dax.put(2)
        dax.adapter.lookup(KEYS[:1])
        dax.done("add", device_path=dax.path("b"), size=3 * STRIDE)
        status, answer = dax.refused("remove", device_path=dax.path("a"))
        assert (status, answer.pop("reason") != "") == (409, True)
        assert answer == {"status": "blocked", "locked_key_count": 1, "borrowed_slot_count": 0}
        assert dax.done("remove", device_path=dax.path("a"), force=True)["moved_keys"] == 2

    def test_refusals(self, dax: DaxSite) -> None:
        dax.put(3)
        a, b = dax.path("a"), dax.path("b")
        assert dax.refused("remove", device_path=a) == (507, {"error": "no active destination DAX capacity"})
        dax.done("add", device_path=b, size=2 * STRIDE)
        assert dax.refused("remove", device_path=a) == (507, {"error": "insufficient destination DAX capacity"})
        assert dax.refused("remove", device_path=dax.path("c")) == (404, {"error": "DAX device not found"})
        assert dax.refused("remove", device_path=" ")[0] == 400
        assert dax.refused("remove", device_path=a, mode="gently")[0] == 422
        assert dax.refused("remove", device_path=a, force="yes")[0] == 422
        dax.done("remove", device_path=b)
        assert dax.refused("remove", device_path=b) == (404, {"error": "DAX device not found"})


class TestResize:
    @pytest.mark.parametrize("slots", [1, 3, 5])
    def test_to(self, dax: DaxSite, slots: int) -> None:
        dax.put(1)
        assert dax.done("resize", device_path=dax.path("a"), size=slots * STRIDE) == {
            "status": "ok", "operation": "resize", "adapter_index": 0, "device_path": dax.path("a"), "index": 0,
            "old_size_bytes": 3 * STRIDE, "new_size_bytes": slots * STRIDE, "state": "active",
        }  # fmt: skip
        assert dax.devices()[0]["max_slots"] == slots

    def test_shrink(self, dax: DaxSite) -> None:
        dax.put(3)
        a = dax.path("a")
        assert dax.refused("resize", device_path=a, size=STRIDE) == (
            507, {"error": "no active destination DAX capacity"},
        )  # fmt: skip
        status, answer = dax.refused("resize", device_path=a, size=STRIDE, mode="evict")
        assert (status, answer["error"][:37]) == (409, "invalid DAX hotplug resize request: s")
        dax.done("add", device_path=dax.path("b"), size=STRIDE)
        assert dax.refused("resize", device_path=a, size=STRIDE) == (
            507, {"error": "insufficient destination DAX capacity"},
        )  # fmt: skip
        dax.done("resize", device_path=a, size=2 * STRIDE)
        assert [device["live_slot_count"] for device in dax.devices()] == [2, 1]
        dax.adapter.lookup(KEYS[:1])
        status, answer = dax.refused("resize", device_path=a, size=STRIDE, mode="evict")
        assert (status, answer["status"], answer["locked_key_count"]) == (409, "blocked", 1)
        dax.done("resize", device_path=a, size=STRIDE, mode="evict", force=True)
        assert len(dax.site.listed("adapter=dax")) == 2

    def test_refusals(self, dax: DaxSite) -> None:
        a = dax.path("a")
        status, answer = dax.refused("resize", device_path=a, size="1GiB")
        assert (status, answer["error"][:28]) == (400, "failed to remap DAX device: ")
        status, answer = dax.refused("resize", device_path=a, size=1)
        assert (status, answer["error"][:33]) == (400, "size_bytes does not fit one slot ")
        assert dax.refused("resize", device_path=dax.path("c"), size=STRIDE) == (
            404, {"error": "DAX device not found"},
        )  # fmt: skip
        assert dax.refused("resize", device_path=a, size=STRIDE, mode="drain")[0] == 422
        assert dax.refused("resize", device_path=a)[0] == 422


def test_other_operations(dax: DaxSite) -> None:
    for operation in ("status", "format"):
        expected = {"error": f"unsupported dax reconfigure operation: {operation}"}
        assert dax.refused(operation) == (400, expected)


def test_hotplug_is_off_by_default(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    make_files(tmp_path)
    with storage_site(pool_folder, [spec(tmp_path)]) as site:
        dax = DaxSite(site, tmp_path)
        for operation, body in (("add", {"size": STRIDE}), ("remove", {}), ("resize", {"size": STRIDE})):
            answer = dax.refused(operation, device_path=dax.path("b"), **body)
            assert answer == (403, {"error": "DAX hotplug is disabled"})


def test_what_was_stored_is_there_after_a_restart(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    make_files(tmp_path)
    with storage_site(pool_folder, [spec(tmp_path)]) as site:
        DaxSite(site, tmp_path).put(3)
    with storage_site(pool_folder, [spec(tmp_path)]) as site:
        assert len(site.listed("adapter=dax")) == 3
        assert bytes(site.tier("dax").adapter.load_whole(KEYS[2])) == b"x" * SLOT_BYTES
