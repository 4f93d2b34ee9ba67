"""One serde at work in many threads at once."""

from __future__ import annotations

import threading

from lmcache.serde.zstd import Config, make
from lmcache.testing.l2_backend import make_key


def test_zstd_in_many_threads():
    """A compressor that threads share crashes the process, or gives back other bytes."""
    serde = make(Config())
    failures: list[str] = []
    barrier = threading.Barrier(6)

    def work(number: int) -> None:
        data = bytes([number, 0, 255, number]) * 20_000
        barrier.wait()
        for _ in range(20):
            encoded = serde.encode(memoryview(data), "", make_key(number))
            target = bytearray(len(data))
            serde.decode(memoryview(encoded.payload), encoded.parameters, memoryview(target), make_key(number))
            if target != data:
                failures.append(f"thread {number} got other bytes")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
