"""DAX under hotplug against a dict: stores, leases, reads under way, devices that come, go and change their size."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmcache.core.keys import ObjectKey
from lmcache.errors import ObjectMissingError, ReconfigureError
from lmcache.l2.base import StoreStatus
from tests.l2.dax_bench import FILE_SLOTS, KEYS, SLOT_BYTES, STRIDE, DaxBench, data_of

NAMES = ["a", "b", "c"]
NUM_KEYS = 9
_number = st.integers(0, NUM_KEYS - 1)
_name = st.sampled_from(NAMES)
_slots = st.integers(1, 5)


class HotplugMachine(RuleBasedStateMachine):
    """Where an object lies is taken from the adapter, and held against what the files say after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lmcache-test-dax-"))
        self.bench = DaxBench(self.folder, {"a": 3, "b": 3})
        self.present: dict[str, int] = {"a": 3, "b": 3}
        self.draining: set[str] = set()
        self.held: set[ObjectKey] = set()
        self.leases: dict[ObjectKey, int] = {}
        self.reads: dict[ObjectKey, ExitStack] = {}
        self.read_on: dict[ObjectKey, tuple[str, int]] = {}

    # What happened

    def _deleted(self) -> set[ObjectKey]:
        """What was told to be deleted since the last call; the model forgets it."""
        told = self.bench.events.deleted
        gone = {key for key, _ in told}
        assert len(gone) == len(told), "a deletion was told twice"
        assert all(size == SLOT_BYTES for _, size in told)
        told.clear()
        assert gone <= self.held
        self.held -= gone
        for key in gone:
            self.leases.pop(key, None)
        return gone

    def _location(self) -> dict[str, list[ObjectKey]]:
        return {name: self.bench.keys_on(name) for name in self.present}

    def _num_free(self, name: str) -> int:
        return self.present[name] - self.bench.report(name)["live_slot_count"]

    def _active(self, but: str = "") -> list[str]:
        return [name for name in self.present if name not in self.draining and name != but]

    def _in_use(self, name: str) -> bool:
        is_read = any(read_name == name for read_name, _ in self.read_on.values())
        return is_read or any(key in self.leases for key in self.bench.keys_on(name))

    # Objects

    @initialize()
    def fill(self) -> None:
        for number in range(4):
            self.store(number)

    @rule(number=_number)
    def store(self, number: int) -> None:
        key = KEYS[number]
        leased = set(self.leases)
        status = self.bench.put(key)
        gone = self._deleted()
        assert not gone & leased
        if status is StoreStatus.EXISTS:
            assert key in self.held
        elif status is StoreStatus.STORED:
            assert key not in self.held
            self.held.add(key)
        else:
            assert key not in self.held
            assert all(self._num_free(name) == 0 for name in self._active())

    @rule(number=_number)
    def load(self, number: int) -> None:
        key = KEYS[number]
        if key in self.held:
            assert self.bench.load(key) == data_of(key)
            return
        try:
            self.bench.load(key)
        except ObjectMissingError:
            return
        raise AssertionError("loaded what is not held")

    @rule(numbers=st.lists(_number, min_size=1, max_size=3, unique=True))
    def lease(self, numbers: list[int]) -> None:
        keys = [KEYS[number] for number in numbers]
        assert self.bench.adapter.lookup(keys) == [key in self.held for key in keys]
        for key in set(keys) & self.held:
            self.leases[key] = self.leases.get(key, 0) + 1

    @rule()
    def release_all(self) -> None:
        for key, count in self.leases.items():
            self.bench.adapter.release([key] * count)
        self.leases.clear()

    @rule(number=_number)
    def begin_read(self, number: int) -> None:
        key = KEYS[number]
        if key not in self.held or key in self.reads:
            return
        stack = ExitStack()
        place = stack.enter_context(self.bench.adapter.devices.reading(key))
        assert place is not None
        self.reads[key] = stack
        self.read_on[key] = (pathlib.Path(place.device.path).name, place.slot)

    @rule()
    @precondition(lambda self: self.reads)
    def end_reads(self) -> None:
        for stack in self.reads.values():
            stack.close()
        self.reads.clear()
        self.read_on.clear()

    @rule(numbers=st.lists(_number, min_size=1, max_size=3, unique=True))
    def delete(self, numbers: list[int]) -> None:
        keys = [KEYS[number] for number in numbers]
        expected = {key for key in keys if key in self.held and key not in self.leases}
        assert set(self.bench.adapter.delete(keys).deleted) == expected
        assert self._deleted() == expected

    @rule()
    def evict(self) -> None:
        num_free = len(self.held - set(self.leases))
        assert self.bench.adapter.evict(1, 1)[0] == min(1, num_free)
        assert len(self._deleted()) == min(1, num_free)

    # Devices

    def _try(self, operate: Callable[[], dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        before = {name: self.bench.state(name) for name in self.present}
        try:
            return 200, operate()
        except ReconfigureError as error:
            assert {name: self.bench.state(name) for name in self.present} == before
            return error.status, {"error": str(error), **error.details}

    @rule(name=_name, slots=_slots)
    def add(self, name: str, slots: int) -> None:
        status, _ = self._try(lambda: self.bench.add(name, slots))
        if name in self.present:
            assert status == (200 if self.present[name] == slots else 409)
        else:
            assert status == 200
            self.present[name] = slots

    @rule(name=_name)
    def drain(self, name: str) -> None:
        status, _ = self._try(lambda: self.bench.remove(name, mode="drain"))
        assert status == (200 if name in self.present else 404)
        if name in self.present:
            self.draining.add(name)

    @rule(name=_name, mode=st.sampled_from(["migrate", "evict"]), force=st.booleans())
    def remove(self, name: str, mode: str, force: bool) -> None:
        if name not in self.present:
            assert self._try(lambda: self.bench.remove(name, mode=mode, force=force))[0] == 404
            return
        keys, in_use = self.bench.keys_on(name), self._in_use(name)
        is_read = any(read_name == name for read_name, _ in self.read_on.values())
        room = sum(map(self._num_free, self._active(but=name)))
        status, answer = self._try(lambda: self.bench.remove(name, mode=mode, force=force))
        gone = self._deleted()
        if in_use and not force:
            assert (status, answer["status"], gone) == (409, "blocked", set())
        elif mode == "migrate" and room < len(keys):
            assert (status, gone) == (507, set())
        else:
            assert gone == (set(keys) if mode == "evict" else set())
            assert status == (409 if is_read else 200), "a read that goes on keeps the device"
        if status == 200:
            num_moved = len(keys) if mode == "migrate" else 0
            assert (answer["moved_keys"], answer["moved_bytes"]) == (num_moved, num_moved * SLOT_BYTES)
            assert answer["deleted_keys"] == len(gone)
            assert self.bench.state(name) == "removed"
            assert self.bench.lies_on(name) == []
            del self.present[name]
            self.draining.discard(name)

    @rule(name=_name, slots=_slots, mode=st.sampled_from(["migrate", "evict"]), force=st.booleans())
    def resize(self, name: str, slots: int, mode: str, force: bool) -> None:
        if name not in self.present:
            assert self._try(lambda: self.bench.resize(name, slots))[0] == 404
            return
        state = self.bench.state(name)
        device = self.bench.adapter.devices.all()[self.bench.report(name)["index"]]
        beyond = set(self.bench.adapter.devices.keys_on(device, slots))
        is_read_beyond = any(read == name and slot >= slots for read, slot in self.read_on.values())
        is_shrinking, in_use = slots < self.present[name], self._in_use(name)
        status, answer = self._try(lambda: self.bench.resize(name, slots, mode=mode, force=force))
        gone = self._deleted()
        if not is_shrinking:
            assert (status, gone) == (200, set())
        elif in_use and not force:
            assert (status, answer["status"], gone) == (409, "blocked", set())
        elif mode == "evict":
            assert gone == (beyond if force else set())
            assert status == (409 if is_read_beyond or (beyond and not force) else 200)
        else:
            assert gone == set()
            assert status in ((409,) if is_read_beyond and status != 507 else (200, 507))
        if status == 200:
            assert (answer["old_size_bytes"], answer["new_size_bytes"]) == (self.present[name] * STRIDE, slots * STRIDE)
            assert answer["state"] == state == self.bench.state(name)
            self.present[name] = slots

    @rule()
    def restart(self) -> None:
        """Leases and reads end with the server; what drained takes stores again."""
        self.end_reads_for_good()
        self.bench.adapter.close()
        self.leases.clear()
        self.draining.clear()
        self.bench.open(dict(self.present))

    def end_reads_for_good(self) -> None:
        for stack in self.reads.values():
            stack.close()
        self.reads.clear()
        self.read_on.clear()

    # What must always hold

    @invariant()
    def the_books_agree(self) -> None:
        self.bench.adapter.index.check_integrity()
        self.bench.adapter.devices.check_integrity()
        assert self.bench.held() == self.held
        usage = self.bench.adapter.usage()
        assert usage.total_bytes_used == len(self.held) * SLOT_BYTES
        assert usage.total_capacity_bytes == sum(self.present.values()) * SLOT_BYTES

    @invariant()
    def the_files_agree(self) -> None:
        for name, keys in self._location().items():
            lying = self.bench.lies_on(name)
            assert lying == keys, "what is not a place of a key must not be found at the next start"
        assert sum(map(len, self._location().values())) == len(self.held)

    @invariant()
    def the_reports_agree(self) -> None:
        for name, slots in self.present.items():
            report = self.bench.report(name)
            assert report["max_slots"] == slots <= FILE_SLOTS
            assert report["locked_key_count"] == sum(key in self.leases for key in self.bench.keys_on(name))
            reads = {place for place in self.read_on.values() if place[0] == name}
            assert report["borrowed_slot_count"] == len(reads)
            assert report["state"] == ("draining" if name in self.draining else "active")

    def teardown(self) -> None:
        self.end_reads_for_good()
        self.bench.adapter.close()
        shutil.rmtree(self.folder)


TestHotplugMachine = HotplugMachine.TestCase
