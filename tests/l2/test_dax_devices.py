"""What a DAX device may be, who may use it, and what is left of it after a crash, a cut file or a failing read."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lmcache.core.sizes import GIB
from lmcache.errors import BackendError, ConfigError, IntegrityError, L2Error
from lmcache.l2.base import AdapterContext, Source, StoreStatus
from lmcache.l2.dax.adapter import DaxL2Adapter
from lmcache.l2.dax.config import DaxConfig
from lmcache.l2.dax.medium import FileMedium, MappedMedium, open_medium
from lmcache.l2.dax.slots import HEADER_ROOM_BYTES, Slots, num_slots_of
from lmcache.l2.registry import parse_adapter
from lmcache.testing.l2_backend import make_data, make_key
from lmcache.testing.l2_dax import dax_config, make_file, open_mapped
from tests.l2.dax_bench import FILE_SLOTS, KEYS, SLOT_BYTES, STRIDE, DaxBench, data_of

ONE_GIB = {"device_path": "/dev/dax0.0", "max_dax_size_gb": 1}


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Iterator[DaxBench]:
    bench = DaxBench(tmp_path, {"a": 2, "b": 2})
    yield bench
    bench.adapter.close()


class TestConfig:
    def test_one_device(self) -> None:
        [device] = DaxConfig(4096, "/dev/dax0.0 ", 0.5).device_settings()
        assert (device.device_path, device.size_bytes) == ("/dev/dax0.0", GIB // 2)

    def test_several(self) -> None:
        config = DaxConfig(4096, devices=[ONE_GIB, {**ONE_GIB, "device_path": "/dev/dax1.0"}])
        assert [device.device_path for device in config.device_settings()] == ["/dev/dax0.0", "/dev/dax1.0"]

    def test_none_with_hotplug(self) -> None:
        assert DaxConfig(4096, hotplug_enabled=True).device_settings() == []
        assert DaxConfig(4096, devices=[], hotplug_enabled=True).device_settings() == []

    def test_the_workers_become_threads(self) -> None:
        config = DaxConfig(4096, "/x", 1, num_store_workers=2, num_lookup_workers=1, num_load_workers=5)
        assert DaxL2Adapter(config, AdapterContext("dax")).num_threads == 8

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({}, "missing field 'slot_bytes'"),
            ({"slot_bytes": 0, **ONE_GIB}, "slot_bytes must be a whole number of at least 1"),
            ({"slot_bytes": "4k", **ONE_GIB}, "slot_bytes must be a whole number"),
            ({"slot_bytes": 4096}, "are missing; only `hotplug_enabled` does without"),
            ({"slot_bytes": 4096, "devices": []}, "are missing"),
            ({"slot_bytes": 4096, "device_path": "/x"}, "max_dax_size_gb must be a number greater than 0"),
            ({"slot_bytes": 4096, "max_dax_size_gb": 1}, "device_path must be a text"),
            ({"slot_bytes": 4096, "device_path": " ", "max_dax_size_gb": 1}, "device_path must be a text"),
            ({"slot_bytes": 4096, "device_path": "a\0b", "max_dax_size_gb": 1}, "NUL"),
            ({"slot_bytes": 4096, **ONE_GIB, "devices": []}, "not both"),
            ({"slot_bytes": 4096, "devices": ONE_GIB}, "devices must be a list"),
            ({"slot_bytes": 4096, "devices": [ONE_GIB, {"device_path": "/x"}]}, r"devices\[1\] must have"),
            ({"slot_bytes": 4096, "devices": [{**ONE_GIB, "max_dax_size_gb": -1}]}, r"devices\[0\]: max_dax_size_gb"),
            ({"slot_bytes": 4096, "devices": [ONE_GIB, ONE_GIB]}, "each device_path must appear once"),
            ({"slot_bytes": GIB, **ONE_GIB}, "does not fit one slot of 1073741824 bytes"),
            ({"slot_bytes": 4096, **ONE_GIB, "hotplug_enabled": "yes"}, "hotplug_enabled must be true or false"),
            ({"slot_bytes": 4096, **ONE_GIB, "num_load_workers": 0}, "num_load_workers must be"),
            ({"slot_bytes": 4096, **ONE_GIB, "slots": 1}, "unknown field 'slots'"),
        ],
    )
    def test_refusals(self, fields: dict[str, object], text: str) -> None:
        with pytest.raises(ConfigError, match=text):
            parse_adapter(json.dumps({"type": "dax", **fields}), "--l2-adapter #1")


class TestSlots:
    def test_a_payload_of_slot_bytes_fits(self, bench: DaxBench) -> None:
        assert num_slots_of(2 * (SLOT_BYTES + HEADER_ROOM_BYTES), SLOT_BYTES) == 2
        bench.store(KEYS[0])
        assert len(bench.load(KEYS[0])) == SLOT_BYTES

    def test_a_longer_one_is_refused_and_evicts_nothing(self, bench: DaxBench, caplog) -> None:
        bench.store(*KEYS[:4])
        assert bench.adapter.store(KEYS[9], Source(memoryview(bytes(SLOT_BYTES + 1)))) is StoreStatus.NO_ROOM
        assert bench.held() == set(KEYS[:4])
        assert f"raise slot_bytes ({SLOT_BYTES}) to at least" in caplog.text

    def test_the_lowest_free_slot_is_taken(self) -> None:
        slots = Slots(4)
        assert [slots.take() for _ in range(5)] == [0, 1, 2, 3, -1]
        slots.give_back(2)
        slots.give_back(1)
        assert slots.take(1) == -1
        assert [slots.take(), slots.take(), slots.take()] == [1, 2, -1]
        slots.check_integrity()

    def test_what_is_used_is_neither_taken_nor_cut_off(self) -> None:
        slots = Slots(4)
        slots.use(3)
        with pytest.raises(IntegrityError, match="used twice"):
            slots.use(3)
        with pytest.raises(IntegrityError, match="cannot be cut off"):
            slots.resize(3)
        slots.give_back(3)
        with pytest.raises(IntegrityError, match="given back twice"):
            slots.give_back(3)
        slots.resize(2)
        slots.resize(6)
        assert (len(slots), slots.num_free) == (6, 6)

    def test_a_pinned_slot_is_free_when_its_last_pin_ends(self) -> None:
        slots = Slots(1)
        slots.take()
        slots.pin(0)
        slots.pin(0)
        slots.give_back(0)
        slots.unpin(0)
        assert slots.take() == -1
        slots.unpin(0)
        assert slots.take() == 0


class TestOneServerAlone:
    def test_a_second_adapter_is_refused(self, bench: DaxBench, tmp_path: pathlib.Path) -> None:
        other = DaxL2Adapter(dax_config([bench.path("c"), bench.path("a")], 1, SLOT_BYTES), AdapterContext("dax"))
        with pytest.raises(BackendError, match="in use by another server or adapter"):
            other.open()
        open_medium(bench.path("c"), STRIDE).close()  # the refused one has let go of it
        bench.adapter.close()
        other.open()
        other.close()

    def test_another_process_is_refused(self, bench: DaxBench) -> None:
        script = "import sys; from lmcache.l2.dax.medium import open_medium; open_medium(sys.argv[1], 4096)"
        other = subprocess.run(
            [sys.executable, "-c", script, bench.path("a")], capture_output=True, text=True, timeout=30, check=False
        )
        assert "in use by another server or adapter" in other.stderr

    def test_a_removed_device_is_let_go(self, bench: DaxBench) -> None:
        bench.remove("a")
        open_medium(bench.path("a"), STRIDE).close()


class TestMedia:
    def test_what_is_no_device(self, tmp_path: pathlib.Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ConfigError, match="neither a regular file"):
            open_medium(str(tmp_path / "pipe"), 4096)
        with pytest.raises(ConfigError, match="neither a regular file"):
            open_medium("/dev/null", 4096)
        with pytest.raises(BackendError, match="No such file"):
            open_medium(str(tmp_path / "missing"), 4096)
        with pytest.raises(ConfigError, match="neither a regular file"):
            open_medium(str(tmp_path), 4096)

    def test_opening_fails_where_the_file_is_too_small(self, tmp_path: pathlib.Path) -> None:
        path = make_file(tmp_path / "a", 1, SLOT_BYTES)
        adapter = DaxL2Adapter(dax_config([path], 2, SLOT_BYTES), AdapterContext("dax"))
        with pytest.raises(ConfigError, match=f"has {STRIDE} bytes, less than the {2 * STRIDE} asked for"):
            adapter.open()
        adapter.close()

    def test_a_larger_file_keeps_its_length(self, bench: DaxBench) -> None:
        bench.store(*KEYS[:4])
        bench.resize("a", 1, mode="evict", force=True)
        bench.remove("b", mode="evict")
        assert os.path.getsize(bench.path("a")) == os.path.getsize(bench.path("b")) == FILE_SLOTS * STRIDE

    def test_a_mapped_device_grows_while_an_old_view_is_read(self, tmp_path: pathlib.Path) -> None:
        path = make_file(tmp_path / "a", 2, SLOT_BYTES)
        medium = open_mapped(path, STRIDE)
        assert isinstance(medium, MappedMedium)
        old = medium._bytes
        medium.resize(2 * STRIDE)
        medium.write(2 * STRIDE - 4, b"last")
        medium.write(0, b"first")
        assert bytes(old[:5]) == b"first"
        with pytest.raises(ConfigError, match="less than"):
            medium.resize(3 * STRIDE)
        medium.close()
        medium.close()
        assert pathlib.Path(path).read_bytes()[-4:] == b"last"

    def test_what_cannot_be_mapped(self, tmp_path: pathlib.Path) -> None:
        path = make_file(tmp_path / "a", 1, SLOT_BYTES)
        with open(path, "r+b") as file, pytest.raises(BackendError, match="cannot map"):
            MappedMedium(path, file.fileno(), 2 * STRIDE)  # a mapping beyond the end of a file


class TestCutFile:
    """Somebody truncates a file that is in use. A mapping would end the process with SIGBUS."""

    def test_a_load_is_a_miss_and_the_device_fails(self, bench: DaxBench) -> None:
        bench.store(*KEYS[:4])
        on_a, on_b = bench.keys_on("a"), bench.keys_on("b")
        os.truncate(bench.path("a"), STRIDE)
        with pytest.raises(L2Error):
            bench.load(on_a[1])
        assert bench.state("a") == "failed"
        assert bench.adapter.report_status()["is_healthy"] is False
        assert bench.held() == set(on_b)
        assert {key for key, _ in bench.events.deleted} == set(on_a)
        assert bench.adapter.usage().total_capacity_bytes == 2 * SLOT_BYTES
        assert os.path.getsize(bench.path("a")) == STRIDE, "it is not made longer again"
        bench.check()

    def test_a_store_goes_elsewhere(self, bench: DaxBench) -> None:
        os.truncate(bench.path("a"), 0)
        bench.store(*KEYS[:2])
        assert bench.state("a") == "failed"
        assert bench.keys_on("b") == KEYS[:2]
        assert os.path.getsize(bench.path("a")) == 0

    def test_it_can_be_added_again(self, bench: DaxBench) -> None:
        bench.store(*KEYS[:4])
        first = bench.keys_on("a")[0]
        os.truncate(bench.path("a"), STRIDE)
        assert bench.adapter.verify(bench.keys_on("a")[1]) is False
        assert bench.add("a", 1)["device"]["state"] == "active"
        assert bench.load(first) == data_of(first), "what was not cut off is found again"
        assert bench.adapter.report_status()["is_healthy"] is True
        bench.check()


class TestRestart:
    def test_finds_objects_on_every_device(self, bench: DaxBench) -> None:
        bench.store(*KEYS[:4])
        bench.adapter.close()
        bench.open({"b": 2, "a": 2})
        assert [bench.load(key) for key in KEYS[:4]] == [data_of(key) for key in KEYS[:4]]
        bench.check()

    def test_reads_headers_alone(self, bench: DaxBench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.store(*KEYS[:4])
        bench.adapter.close()
        lengths: list[int] = []
        read = FileMedium.read

        def count(medium: FileMedium, offset: int, target: memoryview) -> int:
            lengths.append(len(target))
            return read(medium, offset, target)

        monkeypatch.setattr(FileMedium, "read", count)
        bench.open({"a": 2, "b": 2})
        assert lengths == [HEADER_ROOM_BYTES] * 4

    def test_one_object_on_two_devices_is_kept_once(self, bench: DaxBench) -> None:
        """As a crash in the middle of a migration leaves it."""
        bench.store(KEYS[0])
        bench.adapter.close()
        content = pathlib.Path(bench.path("a")).read_bytes()
        pathlib.Path(bench.path("b")).write_bytes(content)
        bench.open({"a": 2, "b": 2})
        assert bench.keys_on("a") == [KEYS[0]]
        assert bench.lies_on("b") == []
        bench.check()

    def test_another_slot_size_finds_nothing_wrong(self, bench: DaxBench) -> None:
        bench.store(*KEYS[:4])
        bench.adapter.close()
        config = dax_config([bench.path("a")], 1, 3 * SLOT_BYTES)
        other = DaxL2Adapter(config, AdapterContext("dax"))
        other.open()
        for key in KEYS[:4]:
            if other.lookup([key])[0]:
                assert bytes(other.load_whole(key)) == data_of(key)
        other.close()


class _StoppedError(BaseException):
    """The process is gone."""


class _StoppingMedium(FileMedium):
    """Ends in the middle of the n-th write from now on."""

    num_writes_left = 1 << 30

    def write(self, offset: int, data: memoryview | bytes) -> None:
        self.num_writes_left -= 1
        if self.num_writes_left >= 0:
            super().write(offset, data)
            return
        if self.num_writes_left == -1:
            super().write(offset, memoryview(data)[: len(data) // 2])
        raise _StoppedError


@pytest.mark.parametrize("num_writes", range(9))
def test_stopped_in_the_middle_of_any_write(tmp_path: pathlib.Path, num_writes: int) -> None:
    """A slot is freed and filled anew, twice, in four writes each. Only what was finished is found later."""
    path = make_file(tmp_path / "a", 1, SLOT_BYTES)
    media: list[_StoppingMedium] = []

    def opener(path: str, size_bytes: int) -> _StoppingMedium:
        media.append(_StoppingMedium(path, os.open(path, os.O_RDWR), size_bytes))
        return media[-1]

    adapter = DaxL2Adapter(dax_config([path], 1, SLOT_BYTES), AdapterContext("dax"), opener)
    adapter.open()
    adapter.store(KEYS[0], Source(memoryview(data_of(KEYS[0]))))
    media[0].num_writes_left = num_writes
    with contextlib.suppress(_StoppedError):
        for key in KEYS[1:3]:
            adapter.store(key, Source(memoryview(data_of(key))))
    media[0].close()
    later = DaxL2Adapter(dax_config([path], 1, SLOT_BYTES), AdapterContext("dax"))
    later.open()
    found = [key for key in KEYS[:3] if later.lookup([key])[0]]
    assert [bytes(later.load_whole(key)) for key in found] == [data_of(key) for key in found]
    assert found == ([KEYS[2]] if num_writes == 8 else [])
    later.close()


_STORER = """
import sys
from lmcache.l2.base import AdapterContext, Source
from lmcache.l2.dax.adapter import DaxL2Adapter
from lmcache.testing.l2_backend import make_data, make_key
from lmcache.testing.l2_dax import dax_config, open_mapped
from lmcache.l2.dax.medium import open_medium
opener = open_mapped if sys.argv[1] == "mapped" else open_medium
adapter = DaxL2Adapter(dax_config(sys.argv[2:], 4, 1 << 20), AdapterContext("dax"), opener)
adapter.open()
payloads = [make_data(number, 1 << 20) for number in range(12)]
turn = 0
while True:
    if turn == 6:
        print("some are stored", flush=True)
    number = turn % 12
    adapter.store(make_key(number), Source(memoryview(payloads[number])))
    adapter.delete([make_key((turn * 7) % 12)])
    turn += 1
"""


@pytest.mark.parametrize("kind", ["file", "mapped"])
def test_killed_while_storing(tmp_path: pathlib.Path, kind: str) -> None:
    """Slots are written, reused and evicted all the time; whatever is found after kill -9 is byte-exact."""
    paths = [make_file(tmp_path / name, 4, 1 << 20) for name in "ab"]
    num_found = 0
    for turn in range(4):
        child = subprocess.Popen([sys.executable, "-c", _STORER, kind, *paths], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"some are stored\n"
        time.sleep(0.013 * turn)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        adapter = DaxL2Adapter(dax_config(paths, 4, 1 << 20), AdapterContext("dax"))
        adapter.open()
        for number in range(12):
            if adapter.lookup([make_key(number)])[0]:
                assert bytes(adapter.load_whole(make_key(number))) == make_data(number, 1 << 20)
                num_found += 1
        adapter.index.check_integrity()
        adapter.devices.check_integrity()
        adapter.close()
    assert num_found
