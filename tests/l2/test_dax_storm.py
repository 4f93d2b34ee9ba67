"""Threads that store, load and delete while devices move from under them: what a lease protects loads whole."""

from __future__ import annotations

import pathlib
import random
import threading

from lmcache.errors import ReconfigureError
from lmcache.l2.base import StoreStatus
from lmcache.l2.dax.hotplug import Hotplug
from lmcache.testing.waiting import wait_until
from tests.l2.dax_bench import KEYS, SLOT_BYTES, DaxBench, data_of

NUM_WORKERS = 4
NUM_CHANGES = 120
REFUSALS = {409, 507}


class Storm:
    def __init__(self, bench: DaxBench) -> None:
        self.bench = bench
        self.failures: list[str] = []
        self.is_over = threading.Event()
        self.num_loaded = 0
        self.num_changed = 0

    def run(self) -> None:
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(NUM_WORKERS)]
        for thread in threads:
            thread.start()
        try:
            self._change()
            # Changes alone are no storm: what a busy machine kept waiting has its turn, too.
            wait_until(lambda: self.num_loaded or self.failures)
        finally:
            self.is_over.set()
        for thread in threads:
            thread.join()

    def _work(self, number: int) -> None:
        choice = random.Random(number)
        while not self.is_over.is_set():
            try:
                self._step(choice)
            except Exception as error:  # the root of a thread: the test fails with it
                self.failures.append(repr(error))

    def _step(self, choice: random.Random) -> None:
        key = KEYS[choice.randrange(10)]
        assert self.bench.put(key) in (StoreStatus.STORED, StoreStatus.EXISTS, StoreStatus.NO_ROOM)
        if self.bench.adapter.lookup([key])[0]:
            if self.bench.load(key) != data_of(key):
                self.failures.append("other bytes")
            self.num_loaded += 1
            self.bench.adapter.release([key])
        if choice.random() < 0.3:
            self.bench.adapter.delete([key])

    def _change(self) -> None:
        choice = random.Random(99)
        for _ in range(NUM_CHANGES):
            name, slots, force = choice.choice("abc"), choice.randint(2, 6), choice.random() < 0.7
            try:
                change = choice.choice(["add", "remove", "resize"])
                if change == "add" and self._is_absent(name):
                    self.bench.add(name, slots)
                elif change == "remove" and not self._is_absent(name):
                    self.bench.remove(name, force=force)
                elif change == "resize" and not self._is_absent(name):
                    self.bench.resize(name, slots, force=force)
                self.num_changed += 1
            except ReconfigureError as error:
                if error.status not in REFUSALS:
                    self.failures.append(f"{error.status} {error}")

    def _is_absent(self, name: str) -> bool:
        reports = self.bench.adapter.report_status()["devices"]
        assert isinstance(reports, list)
        path = self.bench.path(name)
        return all(report["device_path"] != path or report["state"] == "removed" for report in reports)


def test_storm(tmp_path: pathlib.Path) -> None:
    bench = DaxBench(tmp_path, {"a": 5, "b": 5})
    bench.adapter._hotplug = Hotplug(bench.adapter, True, SLOT_BYTES, 10)
    storm = Storm(bench)
    storm.run()
    assert storm.failures == []
    assert storm.num_loaded
    assert storm.num_changed > NUM_CHANGES // 4
    bench.check()
    lying = [bench.lies_on(name) for name in "abc"]
    assert {key for keys in lying for key in keys} == bench.held()
    assert sum(map(len, lying)) == len(bench.held()), "what is held lies once, and nothing else is found"
    bench.adapter.close()
