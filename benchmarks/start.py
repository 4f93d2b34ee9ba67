"""From the command line to the first 200, and what the idle server takes beside its pool."""

from __future__ import annotations

import time

from benchmarks.common import Row, median, print_rows, resident_bytes, server

ROUNDS = 7


def main() -> None:
    starts, sizes = [], []
    for _ in range(ROUNDS):
        with server(1.0) as running:
            starts.append(running.seconds_to_first_200)
            time.sleep(1.0)
            sizes.append(resident_bytes(running.process.pid) / (1 << 20))
    print_rows(
        "server with a pool of 1 GiB, empty index",
        [
            Row("start to first 200", f"{median(starts):.2f} s", "<= 0.8 s", median(starts) <= 0.8),
            Row("RssAnon + RssFile, idle", f"{median(sizes):.0f} MiB", "<= 80 MiB", median(sizes) <= 80),
        ],
    )


if __name__ == "__main__":
    main()
