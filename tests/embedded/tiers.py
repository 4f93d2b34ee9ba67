"""Backends for tests of embedded engines, and adapters behind them that a test can look at or hold up."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lmcache.embedded.config import Backend
from lmcache.embedded.tier_engine import TierEngine
from lmcache.l2.base import L2Adapter
from lmcache.testing.paged_memory import digest_of
from tests.conftest import FakeClock
from tests.embedded.site import PATIENCE_S, Site, backend

DISK, REMOTE = "LocalDiskBackend", "RemoteBackend"


def disk(folder: pathlib.Path, name: str = DISK) -> Backend:
    return backend(name, type="fs", base_path=str(folder))


def memory(name: str = REMOTE, **more: object) -> Backend:
    return backend(name, type="memory", max_size_gb=0.01, **more)


def slow(operation: str, delay_s: float, name: str = REMOTE) -> Backend:
    return backend(
        name, type="fault_inject", inner={"type": "memory", "max_size_gb": 0.01},
        rate=1.0, faults=["delay"], operations=[operation], delay_s=delay_s,
    )  # fmt: skip


def adapter_of(owner: Site | TierEngine, name: str) -> L2Adapter:
    engine = owner.engine if isinstance(owner, Site) else owner
    return engine._backends.tiers(name)[0][1].adapter


def held_by(site: Site, name: str) -> str:
    """Names (single letters) of the chunks that a tier holds, sorted."""
    letters = {digest_of(letter): letter for letter in "abcdefghijklmnopqrstuvwxyz"}
    keys, _ = adapter_of(site, name).keys_after(0, 1000)
    return "".join(sorted(letters[key.chunk_hash] for key in keys))


class Gate:
    """Makes one method of an adapter wait until the gate is opened. `was_passed`: some call of it went on."""

    def __init__(self, owner: Site | TierEngine, name: str, method: str) -> None:
        self.is_reached = threading.Event()
        self.was_passed = False
        self._may_pass = threading.Event()
        adapter = adapter_of(owner, name)
        inside = getattr(adapter, method)

        def wait_and_call(*args: object) -> object:
            self.is_reached.set()
            is_open = self._may_pass.wait(PATIENCE_S)
            self.was_passed = True
            assert is_open
            return inside(*args)

        setattr(adapter, method, wait_and_call)

    def open(self) -> None:
        self._may_pass.set()


@contextmanager
def looking_up(site: Site, names: str, gate: Gate) -> Iterator[list[int]]:
    """A lookup under way, what it wants held up at the gate; afterwards it has ended, and this is what it found."""
    found: list[int] = []
    asking = threading.Thread(target=lambda: found.append(site.lookup(names, wait_s=PATIENCE_S)))
    asking.start()
    assert gate.is_reached.wait(PATIENCE_S)
    yield found
    asking.join()


def look_up_in_vain(site: Site, names: str, gate: Gate, clock: FakeClock) -> None:
    """The time that a lookup has, by the engine's clock, is over while what it wants is held up at the gate."""
    with looking_up(site, names, gate) as found:
        clock.advance(PATIENCE_S)
        site.loop("prefetch").wake()
    assert found == [0]
