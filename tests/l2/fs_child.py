"""Another server on a folder: an adapter in a process of its own, which the tests talk to line by line.

fs_child.py <base path> <boot id> <capacity in GiB>      answers "ready"
store <number>     answers with the status       stall <number>    answers "stalled" in the middle of a write
delete <number>, tick, status
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys

from lmcache.errors import L2Error, ObjectMissingError
from lmcache.l2.base import AdapterContext, Source, StoreStatus
from lmcache.l2.fs.adapter import FSL2Adapter
from lmcache.l2.fs.config import FSConfig
from lmcache.testing.l2_backend import make_data, make_key


def _stall(descriptor: int, pieces: list[memoryview]) -> None:
    os.pwritev(descriptor, [pieces[0], pieces[1][: len(pieces[1]) // 2]], 0)
    print("stalled", flush=True)
    signal.pause()


def _storm(adapter: FSL2Adapter, num_rounds: int) -> str:
    """Somebody else may remove any object at any time; what is loaded must be whole."""
    random_ = random.Random(adapter.context.boot_id)
    wrong: list[str] = []
    for turn in range(num_rounds):
        number = random_.randrange(6)
        key, target = make_key(number), bytearray(4096)
        if random_.random() < 0.3:
            adapter.delete([key])
        elif adapter.store(key, Source(memoryview(make_data(number)))) is not StoreStatus.GONE:
            try:
                adapter.load(key, memoryview(target))
                wrong += [] if target == make_data(number) else [f"other bytes under {number}"]
            except ObjectMissingError:
                pass
            except L2Error as error:
                wrong.append(repr(error))
        if turn % 10 == 0:
            adapter.tick()
    adapter.index.check_integrity()
    return json.dumps(wrong)


def _obey(adapter: FSL2Adapter, order: str, number: int) -> str:
    if order == "stall":
        adapter.files._write_all = _stall  # type: ignore[method-assign]
    if order in ("store", "stall"):
        return adapter.store(make_key(number), Source(memoryview(make_data(number))))
    if order == "delete":
        return str(len(adapter.delete([make_key(number)]).deleted))
    if order == "storm":
        return _storm(adapter, number)
    adapter.tick()
    return json.dumps(adapter.report_status())


def main(base_path: str, boot_id: str, capacity_gb: str) -> None:
    config = FSConfig(base_path, max_capacity_gb=float(capacity_gb))
    adapter = FSL2Adapter(config, AdapterContext("fs", boot_id=int(boot_id)))
    adapter.open()
    print("ready", flush=True)
    for line in sys.stdin:
        order, _, number = line.partition(" ")
        print(_obey(adapter, order.strip(), int(number or 0)), flush=True)
    adapter.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
