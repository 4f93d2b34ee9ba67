"""From the command line to the first 200, and what the idle server takes beside its pool."""

from __future__ import annotations

import time

from benchmarks.common import Row, median, print_rows, resident_bytes, server

ROUNDS = 7


def main(rounds: int = ROUNDS, pool_gib: float = 1.0, idle_s: float = 1.0) -> list[Row]:
    starts, sizes = [], []
    for _ in range(rounds):
        with server(pool_gib) as running:
            starts.append(running.seconds_to_first_200)
            time.sleep(idle_s)
            sizes.append(resident_bytes(running.process.pid) / (1 << 20))
    rows = [
        Row("start to first 200", f"{median(starts):.2f} s", "<= 0.8 s", median(starts) <= 0.8),
        Row("RssAnon + RssFile, idle", f"{median(sizes):.0f} MiB", "<= 80 MiB", median(sizes) <= 80),
    ]
    print_rows(f"server with a pool of {pool_gib:g} GiB, empty index", rows)
    return rows


if __name__ == "__main__":
    main()
