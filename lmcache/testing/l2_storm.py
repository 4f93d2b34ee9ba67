"""Many threads at one adapter at once."""

from __future__ import annotations

import threading

from lmcache.core.keys import ObjectKey
from lmcache.testing.l2_backend import Bench, make_data, make_key


class Storm:
    """Threads that store, load and delete the same few objects; what a lease protects must load whole."""

    _NUM_THREADS = 6
    _NUM_ROUNDS = 25

    def __init__(self, bench: Bench) -> None:
        self.keys = [make_key(number) for number in range(5)]
        self.failures: list[str] = []
        self._bench = bench
        self._start = threading.Barrier(self._NUM_THREADS)

    def run(self) -> None:
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(self._NUM_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, number: int) -> None:
        self._start.wait()
        for turn in range(self._NUM_ROUNDS):
            position = (turn * (number + 1)) % len(self.keys)
            try:
                self._step(self.keys[position], make_data(position), is_deleting=(turn + number) % 3 == 0)
            except Exception as error:  # the root of a thread: the test fails with it
                self.failures.append(repr(error))

    def _step(self, key: ObjectKey, data: bytes, is_deleting: bool) -> None:
        self._bench.store(key, data)
        if self._bench.adapter.lookup([key])[0]:
            if self._bench.load(key, len(data)).data != data:
                self.failures.append(f"other bytes under {key}")
            self._bench.adapter.release([key])
        if is_deleting:
            self._bench.adapter.delete([key])
