"""Devices that come, go, drain and change their size: every rule, and every refusal with its code."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Callable, Iterator

import pytest

from lmcache.errors import BackendError, ObjectMissingError, ReconfigureError
from lmcache.l2.base import Source, StoreStatus
from lmcache.l2.dax.device import Device
from lmcache.l2.dax.devices import Found
from lmcache.l2.dax.hotplug import Hotplug
from lmcache.l2.dax.medium import FileMedium
from lmcache.testing.waiting import PATIENCE_S
from tests.l2.dax_bench import FILE_SLOTS, KEYS, SLOT_BYTES, STRIDE, DaxBench, data_of

Make = Callable[..., DaxBench]


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Iterator[Make]:
    made: list[DaxBench] = []

    def make_bench(sizes: dict[str, int], **options: object) -> DaxBench:
        made.append(DaxBench(tmp_path, sizes, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make_bench
    for bench in made:
        bench.adapter.close()


def expect(status: int, text: str, operate: Callable[[], object]) -> dict[str, object]:
    """The details of a refusal."""
    with pytest.raises(ReconfigureError) as caught:
        operate()
    assert caught.value.status == status
    assert text in str(caught.value)
    return caught.value.details


class TestStores:
    def test_go_to_the_emptiest_device(self, make: Make) -> None:
        bench = make({"a": 2, "b": 4})
        bench.store(*KEYS[:6])
        assert len(bench.keys_on("a")) == 2
        assert len(bench.keys_on("b")) == 4
        assert bench.keys_on("a")[0] == KEYS[0]
        assert bench.keys_on("b")[0] == KEYS[1]
        bench.check()

    def test_the_sizes_that_operators_see(self, make: Make) -> None:
        bench = make({"a": 2, "b": 4})
        bench.store(*KEYS[:3])
        status = bench.adapter.report_reconfigurable()
        assert status["total_capacity_bytes"] == 6 * SLOT_BYTES
        assert status["total_used_bytes"] == 3 * SLOT_BYTES == bench.adapter.usage().total_bytes_used
        assert status["slot_bytes"] == SLOT_BYTES
        assert status["hotplug_enabled"] is True
        assert bench.report("b")["max_slots"] == 4
        assert bench.report("b")["max_dax_size_bytes"] == 4 * STRIDE

    def test_without_a_device_there_is_no_room(self, make: Make) -> None:
        bench = make({})
        assert bench.put(KEYS[0]) is StoreStatus.NO_ROOM
        assert bench.adapter.usage().total_capacity_bytes == 0
        bench.add("a", 1)
        bench.store(KEYS[0])
        assert bench.load(KEYS[0]) == data_of(KEYS[0])

    def test_a_full_active_device_beside_one_that_drains(self, make: Make) -> None:
        bench = make({"a": 2, "b": 2})
        bench.store(*KEYS[:4])
        bench.remove("a", mode="drain")
        bench.store(KEYS[4])  # the oldest went until a slot of b was free
        assert KEYS[4] in bench.keys_on("b")
        assert bench.events.evicted == KEYS[:2]
        bench.check()


class TestAdd:
    def test_gives_room(self, make: Make) -> None:
        bench = make({"a": 1})
        bench.store(KEYS[0])
        answer = bench.add("b", 3)
        assert answer["status"] == "ok"
        assert answer["operation"] == "add"
        assert answer["device"] == bench.report("b")
        assert bench.report("b")["index"] == 1
        bench.store(*KEYS[1:4])
        assert len(bench.keys_on("b")) == 3
        assert bench.adapter.usage().total_capacity_bytes == 4 * SLOT_BYTES

    def test_again_with_the_same_size_changes_nothing(self, make: Make) -> None:
        bench = make({"a": 2})
        bench.store(KEYS[0])
        answer = bench.adapter.reconfigure("add", {"device_path": f"  {bench.path('a')} ", "size": 2 * STRIDE})
        assert answer["device"] == bench.report("a")
        assert bench.adapter.report_status()["num_devices"] == 1

    def test_finds_what_the_device_holds(self, make: Make) -> None:
        bench = make({"a": 2, "b": 2})
        bench.store(*KEYS[:4])
        on_b = bench.keys_on("b")
        bench.adapter.close()
        bench.open({"a": 2})
        bench.add("b", 2)
        assert [bench.load(key) for key in on_b] == [data_of(key) for key in on_b]
        bench.check()

    def test_a_key_that_is_held_already_is_dropped_from_the_new_device(self, make: Make) -> None:
        bench = make({"a": 2})
        bench.store(KEYS[0])
        bench.adapter.close()
        bench.open({"b": 2})
        bench.store(KEYS[0])
        bench.add("a", 2)
        assert bench.keys_on("b") == [KEYS[0]]
        assert bench.lies_on("a") == []
        assert bench.report("a")["live_slot_count"] == 0
        bench.check()

    def test_a_key_that_is_stored_while_its_old_slot_is_found(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = make({"a": 2})
        bench.store(KEYS[0])
        bench.adapter.close()
        bench.open({"b": 2})
        take_up = bench.adapter.take_up

        def store_and_take_up(found: Found) -> None:
            bench.store(KEYS[0])
            take_up(found)

        monkeypatch.setattr(bench.adapter, "take_up", store_and_take_up)
        bench.add("a", 2)
        assert bench.load(KEYS[0]) == data_of(KEYS[0])
        assert sorted(map(len, (bench.lies_on("a"), bench.lies_on("b")))) == [0, 1]
        bench.check()

    def test_refusals(self, make: Make, tmp_path: pathlib.Path) -> None:
        bench = make({"a": 2})
        add = bench.adapter.reconfigure
        expect(409, "device_path already active with a different size", lambda: bench.add("a", 3))
        expect(400, "size_bytes does not fit one slot", lambda: bench.add("b", 0.9))
        expect(400, "failed to map DAX device", lambda: bench.add("b", FILE_SLOTS + 1))
        missing = str(tmp_path / "missing")
        expect(400, "No such file", lambda: add("add", {"device_path": missing, "size": STRIDE}))
        expect(400, "failed to map", lambda: add("add", {"device_path": str(tmp_path), "size": STRIDE}))
        expect(400, "neither a regular file", lambda: add("add", {"device_path": "/dev/zero", "size": STRIDE}))
        expect(400, "failed to map", lambda: add("add", {"device_path": "nul\0", "size": STRIDE}))
        (tmp_path / "link").symlink_to(bench.path("a"))
        link = str(tmp_path / "link")
        expect(400, "in use by another server or adapter", lambda: add("add", {"device_path": link, "size": STRIDE}))
        assert bench.adapter.report_status()["num_devices"] == 1
        bench.check()

    def test_an_empty_file_is_not_mapped(self, make: Make, tmp_path: pathlib.Path) -> None:
        bench = make({})
        (tmp_path / "empty").touch()
        expect(400, "has 0 bytes", lambda: bench.add("empty", 1))


@pytest.mark.parametrize("operation", ["add", "remove", "resize"])
class TestEveryOperation:
    def test_needs_hotplug(self, make: Make, operation: str) -> None:
        bench = make({"a": 1}, hotplug_enabled=False)
        expect(403, "DAX hotplug is disabled", lambda: bench.adapter.reconfigure(operation, {}))

    @pytest.mark.parametrize("path", [None, "", "  ", 3])
    def test_needs_a_path(self, make: Make, operation: str, path: object) -> None:
        bench = make({"a": 1})
        expect(400, "device_path", lambda: bench.adapter.reconfigure(operation, {"device_path": path, "size": 1}))

    def test_knows_its_fields(self, make: Make, operation: str) -> None:
        bench = make({"a": 1})
        payload = {"device_path": bench.path("a"), "size": STRIDE, "colour": "red"}
        text = f"invalid DAX hotplug {operation} request"
        expect(400, text, lambda: bench.adapter.reconfigure(operation, payload))

    def test_needs_a_device_that_is_there(self, make: Make, operation: str) -> None:
        bench = make({"a": 1, "b": 1})
        bench.remove("a")
        if operation == "add":
            assert bench.add("a", 1)["device"]["index"] == 2
            return
        operate = bench.remove if operation == "remove" else lambda name: bench.resize(name, 1)
        expect(404, "DAX device not found", lambda: operate("c"))
        expect(404, "DAX device not found", lambda: operate("a"))


@pytest.mark.parametrize(("operation", "fields"), [("remove", {}), ("resize", {"size": STRIDE})])
def test_mode_and_force_are_checked(make: Make, operation: str, fields: dict[str, object]) -> None:
    bench = make({"a": 1})
    payload = {"device_path": bench.path("a"), **fields}
    expect(400, "mode must be one of", lambda: bench.adapter.reconfigure(operation, {**payload, "mode": "gently"}))
    expect(400, "force must be", lambda: bench.adapter.reconfigure(operation, {**payload, "force": 1}))


@pytest.mark.parametrize("operation", ["add", "resize"])
@pytest.mark.parametrize("size", [0, -1, True, 1.5, None, "large"])
def test_the_size_is_checked(make: Make, operation: str, size: object) -> None:
    bench = make({"a": 1})
    payload = {"device_path": bench.path("a"), "size": size}
    expect(400, "size must be a positive", lambda: bench.adapter.reconfigure(operation, payload))


def test_other_operations_are_unknown(make: Make) -> None:
    bench = make({"a": 1})
    for operation in ("status", "format"):
        text = f"unsupported dax reconfigure operation: {operation}"
        expect(400, text, lambda operation=operation: bench.adapter.reconfigure(operation, {}))


def test_two_devices_of_one_path_are_named(make: Make) -> None:
    """Two opened devices cannot have one path; should it ever happen, none of them is chosen."""
    bench = make({"a": 1})
    twin = bench.adapter.devices.all()[0]
    bench.adapter.devices.add(twin, [])
    details = expect(409, "several active", lambda: bench.remove("a"))
    assert details["device_path"] == bench.path("a")
    assert [match["index"] for match in details["matches"]] == [0, 0]  # type: ignore[attr-defined, index]


class TestDrain:
    def test_reads_go_on_and_stores_go_elsewhere(self, make: Make) -> None:
        bench = make({"a": 2, "b": 2})
        bench.store(KEYS[0])
        bench.adapter.lookup([KEYS[0]])  # locks do not matter
        assert bench.remove("a", mode="drain") == {
            "status": "ok", "operation": "drain", "device_path": bench.path("a"), "index": 0, "state": "draining",
        }  # fmt: skip
        assert bench.load(KEYS[0]) == data_of(KEYS[0])
        bench.store(KEYS[1], KEYS[2])
        assert bench.keys_on("b") == [KEYS[1], KEYS[2]]
        assert bench.adapter.usage().total_capacity_bytes == 4 * SLOT_BYTES
        assert bench.remove("a", mode="drain")["state"] == "draining"

    def test_a_lone_device(self, make: Make) -> None:
        bench = make({"a": 2})
        bench.store(KEYS[0])
        bench.remove("a", mode="drain")
        assert bench.put(KEYS[1]) is StoreStatus.NO_ROOM
        assert bench.put(KEYS[0]) is StoreStatus.EXISTS
        assert bench.is_held(KEYS[0]), "nothing was evicted in vain"


class TestMigrate:
    def test_moves_every_key_and_tells_of_none(self, make: Make) -> None:
        bench = make({"a": 3, "b": 6})
        bench.store(*KEYS[:5])
        on_a = bench.keys_on("a")
        assert bench.remove("a") == {
            "status": "ok", "operation": "remove", "device_path": bench.path("a"), "index": 0,
            "moved_keys": len(on_a), "moved_bytes": len(on_a) * SLOT_BYTES, "deleted_keys": 0,
            "source_slots_freed": len(on_a), "state": "removed",
        }  # fmt: skip
        assert on_a
        assert set(bench.keys_on("b")) == set(KEYS[:5])
        assert [bench.load(key) for key in on_a] == [data_of(key) for key in on_a]
        assert bench.events.deleted == []
        bench.check()

    def test_moves_payloads_as_long_as_they_are(self, make: Make) -> None:
        bench = make({"a": 2})
        bench.adapter.store(KEYS[0], Source(memoryview(b"short")))
        bench.add("b", 2)
        assert bench.remove("a")["moved_bytes"] == 5
        assert bytes(bench.adapter.load_whole(KEYS[0])) == b"short"

    def test_keeps_leases_and_tells_of_no_deletion(self, make: Make) -> None:
        bench = make({"a": 2})
        bench.store(*KEYS[:2])
        bench.add("b", 2)
        bench.adapter.lookup(KEYS[:1])
        bench.remove("a", force=True)
        assert bench.adapter.delete(KEYS[:2]).leased == KEYS[:1]
        assert bench.events.deleted == [(KEYS[1], SLOT_BYTES)]
        assert bench.load(KEYS[0]) == data_of(KEYS[0])
        assert bench.lies_on("a") == []
        assert bench.state("a") == "removed"
        assert bench.adapter.usage().total_capacity_bytes == 2 * SLOT_BYTES
        bench.check()

    def test_is_blocked_by_locks(self, make: Make) -> None:
        bench = make({"a": 2, "b": 2})
        bench.store(*KEYS[:2])
        bench.adapter.lookup(bench.keys_on("a"))
        details = expect(409, "", lambda: bench.remove("a"))
        reason = details.pop("reason")
        assert isinstance(reason, str)
        assert reason
        assert details == {"status": "blocked", "locked_key_count": 1, "borrowed_slot_count": 0}
        assert bench.state("a") == "active"
        bench.check()

    def test_is_blocked_by_reads(self, make: Make) -> None:
        bench = make({"a": 2, "b": 2})
        bench.store(*KEYS[:2])
        key = bench.keys_on("a")[0]
        with bench.adapter.devices.reading(key):
            details = expect(409, "", lambda: bench.remove("a"))
            assert details["borrowed_slot_count"] == 1
            assert bench.report("a")["active_read_count"] == 1
            # Forced, the key moves, but the device stays until the read has ended.
            assert expect(409, "", lambda: bench.remove("a", force=True))["borrowed_slot_count"] == 1
            assert bench.state("a") == "active"
            assert bench.keys_on("a") == []
            assert bench.report("a")["live_slot_count"] == 1
        assert bench.report("a")["live_slot_count"] == 0
        assert bench.remove("a")["state"] == "removed"
        assert bench.load(key) == data_of(key)

    def test_a_read_that_ends_in_time(self, make: Make) -> None:
        bench = make({"a": 2, "b": 2})
        bench.store(*KEYS[:2])
        release, begun = threading.Event(), threading.Event()

        def read() -> None:
            with bench.adapter.devices.reading(bench.keys_on("a")[0]):
                begun.set()
                release.wait(PATIENCE_S)

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(PATIENCE_S)
        bench.adapter._hotplug = Hotplug(bench.adapter, True, SLOT_BYTES, 2 * PATIENCE_S)
        threading.Timer(0.05, release.set).start()
        assert bench.remove("a", force=True)["state"] == "removed"
        reader.join()
        bench.check()

    def test_waits_for_stores_under_way(self, make: Make) -> None:
        bench = make({"a": 2, "b": 2})
        place = bench.adapter.devices.reserve()
        assert place is not None
        details = expect(409, "", lambda: bench.remove("a"))
        assert details["reason"] == "stores to this device are still under way"
        bench.adapter.devices.abandon_write(place)
        assert bench.remove("a")["state"] == "removed"

    def test_needs_another_active_device(self, make: Make) -> None:
        bench = make({"a": 2, "b": 2})
        bench.store(*KEYS[:2])
        bench.remove("b", mode="drain")
        expect(507, "no active destination DAX capacity", lambda: bench.remove("a"))
        assert bench.state("a") == "active"
        assert bench.remove("b")["moved_keys"] == 1, "a has room"

    def test_needs_room_for_all(self, make: Make) -> None:
        bench = make({"a": 3, "b": 2})
        bench.store(*KEYS[:5])
        expect(507, "insufficient destination DAX capacity", lambda: bench.remove("a"))
        assert bench.state("a") == "active"
        assert len(bench.keys_on("a")) == 3
        bench.check()

    def test_an_empty_device_needs_no_room(self, make: Make) -> None:
        bench = make({"a": 1})
        answer = bench.remove("a")
        assert (answer["moved_keys"], answer["source_slots_freed"]) == (0, 0)
        assert bench.put(KEYS[0]) is StoreStatus.NO_ROOM

    def test_a_failing_target_changes_nothing(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        bench = make({"a": 3})
        bench.store(*KEYS[:3])
        bench.add("b", 3)
        num_puts = 0
        put = Device.put

        def fail_at_the_third(device: Device, *arguments: object) -> None:
            nonlocal num_puts
            num_puts += 1
            if num_puts == 3:
                raise BackendError("the device went away")
            put(device, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Device, "put", fail_at_the_third)
        with pytest.raises(BackendError):
            bench.remove("a")
        assert bench.state("a") == "active"
        assert bench.keys_on("a") == KEYS[:3]
        assert bench.lies_on("b") == []
        assert bench.report("b")["live_slot_count"] == 0
        bench.check()
        assert bench.remove("a")["moved_keys"] == 3

    def test_a_damaged_object_is_left_behind(self, make: Make) -> None:
        bench = make({"a": 2})
        bench.store(*KEYS[:2])
        bench.add("b", 2)
        with open(bench.path("a"), "r+b") as file:
            file.seek(STRIDE - 1)
            last = file.read(1)
            file.seek(STRIDE - 1)
            file.write(bytes([last[0] ^ 1]))
        assert bench.remove("a")["moved_keys"] == 1
        assert not bench.is_held(KEYS[0])
        assert bench.load(KEYS[1]) == data_of(KEYS[1])
        assert bench.events.deleted == [(KEYS[0], SLOT_BYTES)]
        bench.check()

    def test_a_key_that_is_deleted_meanwhile_stays_deleted(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        bench = make({"a": 2})
        bench.store(*KEYS[:2])
        bench.add("b", 2)
        put = Device.put

        def delete_and_put(device: Device, *arguments: object) -> None:
            bench.adapter.delete(KEYS[:1])
            put(device, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Device, "put", delete_and_put)
        assert bench.remove("a")["moved_keys"] == 1
        assert bench.held() == {KEYS[1]}
        assert bench.lies_on("b") == [KEYS[1]]
        bench.check()

    def test_a_load_follows_the_move(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """A reader that found the old slot, and reads it after the key has left."""
        bench = make({"a": 1})
        bench.store(KEYS[0])
        bench.add("b", 1)
        read = Device.read
        moves = [lambda: expect(409, "", lambda: bench.remove("a", force=True))]

        def move_and_read(device: Device, *arguments: object) -> None:
            if moves:
                moves.pop()()
            read(device, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Device, "read", move_and_read)
        assert bench.load(KEYS[0]) == data_of(KEYS[0])
        assert bench.keys_on("b") == [KEYS[0]]
        assert bench.events.deleted == []


class TestEvict:
    def test_deletes_and_tells(self, make: Make) -> None:
        bench = make({"a": 2, "b": 2})
        bench.store(*KEYS[:4])
        on_a = bench.keys_on("a")
        answer = bench.remove("a", mode="evict")
        assert (answer["moved_keys"], answer["deleted_keys"], answer["source_slots_freed"]) == (0, 2, 2)
        assert answer["operation"] == "remove"
        assert answer["state"] == "removed"
        assert bench.events.deleted == [(key, SLOT_BYTES) for key in on_a]
        assert bench.held() == set(KEYS[:4]) - set(on_a)
        assert bench.lies_on("a") == []
        bench.check()

    def test_needs_force_for_locked_keys(self, make: Make) -> None:
        bench = make({"a": 2})
        bench.store(*KEYS[:2])
        bench.adapter.lookup(KEYS[:1])
        assert expect(409, "", lambda: bench.remove("a", mode="evict"))["locked_key_count"] == 1
        assert bench.held() == set(KEYS[:2])
        assert bench.remove("a", mode="evict", force=True)["deleted_keys"] == 2
        assert bench.held() == set()
        with pytest.raises(ObjectMissingError):
            bench.load(KEYS[0])
        bench.adapter.release(KEYS[:1])
        bench.check()

    def test_a_key_that_is_locked_at_the_last_moment(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        bench = make({"a": 2})
        bench.store(*KEYS[:2])
        keys_on = bench.adapter.devices.keys_on

        def lock_and_list(device: Device, start: int = 0) -> object:
            bench.adapter.lookup(KEYS[1:2])
            return keys_on(device, start)

        monkeypatch.setattr(bench.adapter.devices, "keys_on", lock_and_list)
        details = expect(409, "", lambda: bench.remove("a", mode="evict"))
        assert details["locked_key_count"] == 1
        assert bench.held() == set(KEYS[:2])
        assert bench.events.deleted == []
        assert bench.state("a") == "active"
        bench.check()


class TestResize:
    def test_the_same_size(self, make: Make) -> None:
        bench = make({"a": 2})
        bench.store(KEYS[0])
        bench.adapter.lookup(KEYS[:1])
        assert bench.resize("a", 2) == {
            "status": "ok", "operation": "resize", "device_path": bench.path("a"), "index": 0,
            "old_size_bytes": 2 * STRIDE, "new_size_bytes": 2 * STRIDE, "state": "active",
        }  # fmt: skip

    def test_grow(self, make: Make) -> None:
        bench = make({"a": 1})
        bench.store(KEYS[0])
        bench.adapter.lookup(KEYS[:1])
        answer = bench.resize("a", 3)
        assert (answer["old_size_bytes"], answer["new_size_bytes"]) == (STRIDE, 3 * STRIDE)
        bench.store(*KEYS[1:3])
        assert bench.held() == set(KEYS[:3])
        assert bench.adapter.usage().total_capacity_bytes == 3 * SLOT_BYTES
        bench.check()

    def test_growing_finds_what_lay_there(self, make: Make) -> None:
        bench = make({"a": 3})
        bench.store(*KEYS[:3])
        bench.adapter.close()
        bench.open({"a": 1})
        assert bench.held() == {KEYS[0]}
        bench.resize("a", 3)
        assert [bench.load(key) for key in KEYS[:3]] == [data_of(key) for key in KEYS[:3]]
        bench.check()

    def test_beyond_the_file(self, make: Make) -> None:
        bench = make({"a": 1})
        bench.store(KEYS[0])
        expect(400, "failed to remap DAX device", lambda: bench.resize("a", FILE_SLOTS + 1))
        assert bench.state("a") == "active"
        assert bench.report("a")["max_slots"] == 1
        assert bench.load(KEYS[0]) == data_of(KEYS[0])
        expect(400, "size_bytes does not fit one slot", lambda: bench.resize("a", 0.5))

    def test_growing_into_what_cannot_be_read(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        bench = make({"a": 1})
        bench.store(KEYS[0])
        read = FileMedium.read

        def fail_beyond(medium: FileMedium, offset: int, target: memoryview) -> int:
            if offset >= 2 * STRIDE:
                raise BackendError("bad sector")
            return read(medium, offset, target)

        monkeypatch.setattr(FileMedium, "read", fail_beyond)
        with pytest.raises(BackendError):
            bench.resize("a", 4)
        report = bench.report("a")
        assert (report["state"], report["max_slots"], report["max_dax_size_bytes"]) == ("active", 1, STRIDE)
        assert bench.load(KEYS[0]) == data_of(KEYS[0])
        bench.check()

    def test_a_draining_device_keeps_draining(self, make: Make) -> None:
        bench = make({"a": 3})
        bench.remove("a", mode="drain")
        assert bench.resize("a", 4)["state"] == "draining"
        assert bench.resize("a", 2)["state"] == "draining"

    @pytest.mark.parametrize("mode", ["migrate", "evict"])
    def test_shrink_to_what_is_used(self, make: Make, mode: str) -> None:
        bench = make({"a": 4})
        bench.store(*KEYS[:2])
        bench.resize("a", 2, mode=mode)
        assert bench.held() == set(KEYS[:2])
        assert bench.report("a")["max_slots"] == 2
        assert bench.adapter.usage().total_capacity_bytes == 2 * SLOT_BYTES
        bench.check()

    def test_shrink_moves_only_what_lies_beyond(self, make: Make) -> None:
        bench = make({"a": 4})
        bench.store(*KEYS[:4])
        bench.add("b", 2)
        bench.resize("a", 2)
        assert bench.keys_on("a") == KEYS[:2]
        assert bench.keys_on("b") == KEYS[2:4]
        assert bench.lies_on("a") == KEYS[:2]
        assert bench.events.deleted == []
        bench.check()

    def test_shrink_uses_its_own_free_slots_first(self, make: Make) -> None:
        bench = make({"a": 4})
        bench.store(*KEYS[:4])
        bench.adapter.delete(KEYS[:2])
        bench.resize("a", 2)
        assert set(bench.keys_on("a")) == set(KEYS[2:4])
        assert [bench.load(key) for key in KEYS[2:4]] == [data_of(key) for key in KEYS[2:4]]
        bench.check()

    def test_shrink_without_room_elsewhere(self, make: Make) -> None:
        bench = make({"a": 4})
        bench.store(*KEYS[:4])
        expect(507, "no active destination DAX capacity", lambda: bench.resize("a", 2))
        bench.add("b", 1)
        expect(507, "insufficient destination DAX capacity", lambda: bench.resize("a", 2))
        assert bench.state("a") == "active"
        assert bench.held() == set(KEYS[:4])
        bench.check()

    def test_shrink_by_eviction_needs_force(self, make: Make) -> None:
        bench = make({"a": 4})
        bench.store(*KEYS[:4])
        expect(409, "invalid DAX hotplug resize request", lambda: bench.resize("a", 2, mode="evict"))
        assert bench.held() == set(KEYS[:4])
        bench.adapter.lookup(KEYS[3:4])
        bench.resize("a", 2, mode="evict", force=True)
        assert bench.held() == set(KEYS[:2])
        assert [key for key, _ in bench.events.deleted] == KEYS[2:4]
        bench.check()

    @pytest.mark.parametrize("mode", ["migrate", "evict"])
    def test_shrink_waits_for_reads_of_what_goes(self, make: Make, mode: str) -> None:
        bench = make({"a": 4, "b": 8})
        bench.store(*KEYS[:6])
        key = bench.keys_on("a")[-1]
        with bench.adapter.devices.reading(key):
            details = expect(409, "", lambda: bench.resize("a", 1, mode=mode, force=True))
            assert details["reason"] == "slots are still being read"
            assert bench.report("a")["max_slots"] == 4
        assert bench.resize("a", 1, mode=mode)["new_size_bytes"] == STRIDE
        assert (key in bench.held()) == (mode == "migrate")
        bench.check()

    @pytest.mark.parametrize("mode", ["migrate", "evict"])
    def test_shrink_is_blocked_by_locks(self, make: Make, mode: str) -> None:
        bench = make({"a": 4})
        bench.store(KEYS[0])
        bench.adapter.lookup(KEYS[:1])
        assert expect(409, "", lambda: bench.resize("a", 2, mode=mode))["locked_key_count"] == 1
        assert bench.resize("a", 2, mode=mode, force=True)["new_size_bytes"] == 2 * STRIDE
        assert bench.load(KEYS[0]) == data_of(KEYS[0])

    def test_a_failing_remap_restores_the_state(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        bench = make({"a": 4})
        bench.store(KEYS[0])

        def fail(medium: FileMedium, size_bytes: int) -> None:
            raise BackendError("no")

        monkeypatch.setattr(FileMedium, "resize", fail)
        expect(400, "failed to remap DAX device", lambda: bench.resize("a", 2))
        assert bench.state("a") == "active"
        assert bench.report("a")["max_slots"] == 4
        bench.check()


class TestFullDevices:
    def test_noop_policy_never_makes_room(self, make: Make) -> None:
        bench = make({"a": 1, "b": 1}, policy="noop")
        bench.store(*KEYS[:2])
        bench.remove("a", mode="drain")
        assert bench.put(KEYS[2]) is StoreStatus.NO_ROOM
        assert bench.held() == set(KEYS[:2])

    def test_a_slot_that_is_being_read_is_not_given_away(self, make: Make) -> None:
        bench = make({"a": 1})
        bench.store(KEYS[0])
        with bench.adapter.devices.reading(KEYS[0]) as place:
            assert place is not None
            assert bench.adapter.delete(KEYS[:1]).deleted == KEYS[:1]
            assert bench.report("a")["live_slot_count"] == 1
            assert bench.put(KEYS[1]) is StoreStatus.NO_ROOM
        bench.store(KEYS[1])
        bench.check()
