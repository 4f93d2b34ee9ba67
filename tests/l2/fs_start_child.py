"""Opens a file system adapter over a folder, in a process of its own, and tells what that read.

fs_start_child.py <base path>      prints {"num_objects", "used_bytes", "open_bytes", "verify_bytes"}
"""

from __future__ import annotations

import json
import pathlib
import sys

from lmcache.l2.base import AdapterContext
from lmcache.l2.fs.adapter import FSL2Adapter
from lmcache.l2.fs.config import FSConfig


def bytes_read() -> int:
    """By all threads of this process, from files and pipes, whether the page cache had them or not."""
    lines = pathlib.Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar:")))


def main(base_path: str) -> None:
    adapter = FSL2Adapter(FSConfig(base_path), AdapterContext("fs"))
    before = bytes_read()
    adapter.open()
    opened = bytes_read()
    keys, _ = adapter.keys_after(0, 1)
    assert all(adapter.verify(key) for key in keys)
    verified = bytes_read()
    told = {
        "num_objects": adapter.num_objects,
        "used_bytes": adapter.usage().total_bytes_used,
        "open_bytes": opened - before,
        "verify_bytes": verified - opened,
    }
    adapter.close()
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
