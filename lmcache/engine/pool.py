"""One open pool: its files, its L1, and the thread that takes its pages in slices."""

from __future__ import annotations

import logging
import pathlib
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

from lmcache.errors import NoRoomError
from lmcache.eviction import make_policy
from lmcache.l1.manager import L1Manager
from lmcache.l1.recovery import RecoveryReport
from lmcache.l1.slots import SlotTable
from lmcache.l1.state import L1State
from lmcache.memory.allocator import Allocator
from lmcache.memory.names import NamesTable
from lmcache.memory.numa import interleave_this_thread, online_nodes
from lmcache.memory.pool_files import PAGE_BYTES, Geometry, PoolAccess, PoolFiles
from lmcache.memory.records import RecordTable
from lmcache.quota.manager import QuotaManager
from lmcache.telemetry.steps import NO_STEPS, StepObserver

logger = logging.getLogger(__name__)

_SLICE_BYTES = 64 << 20

# As whom the server itself writes to slots, when it loads from L2. Whoever holds the pool's lock
# is the only one: what bears this mark after a recovery was left by a server that is dead.
SERVER_UID = 0


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Where the pool lies and how it behaves. `keep`: a clean stop leaves it for the next start. `maps_ahead`: this
    process is the one that copies, and maps the pages in the background."""

    folder: pathlib.Path
    geometry: Geometry
    access: PoolAccess = field(default_factory=PoolAccess)
    eviction_policy: str = "LRU"
    write_ttl_s: float = 600.0
    keep: bool = False
    interleave_numa: bool = False
    maps_ahead: bool = False


class Pool:
    """Opened by the constructor, which recovers what a dead server left, if it `adopts`. Thread-safe."""

    def __init__(
        self,
        config: PoolConfig,
        clock: Callable[[], float] = time.monotonic,
        steps: StepObserver = NO_STEPS,
        quotas: QuotaManager | None = None,
        adopts: bool = True,
    ) -> None:
        self.config = config
        self.quotas = quotas or QuotaManager()
        policy = make_policy(config.eviction_policy)
        self.files = PoolFiles(config.folder, config.geometry, config.access, adopts=adopts)
        self._records = RecordTable(self.files.index, PAGE_BYTES, config.geometry.num_records, steps)
        self._names = NamesTable(config.folder / "names", config.access.file_mode)
        slots = SlotTable(self._records, Allocator())
        self.l1 = L1Manager(L1State(slots, self._names, policy), config.write_ttl_s, clock, steps, self.quotas)
        self.recovery: RecoveryReport = self.l1.recover()
        self.l1.abort_owner(SERVER_UID)
        self.populate_error = ""
        self.is_closed = False
        self._stopping = threading.Event()
        self._populator = threading.Thread(target=self._populate, name="lmcache-l1-populate", daemon=True)
        self._populator.start()

    @property
    def pool_bytes(self) -> int:
        return self.config.geometry.pool_bytes

    def view(self, offset: int, length: int) -> memoryview:
        """Bytes of the pool, writable; stay readable for as long as somebody holds them."""
        return self.files.view(offset, length)

    @property
    def is_populating(self) -> bool:
        return self._populator.is_alive()

    def _populate(self) -> None:
        """Take the pages behind what recovery found in use, a slice at a time."""
        if self.config.interleave_numa and not interleave_this_thread(online_nodes()):
            logger.warning("this kernel does not interleave NUMA nodes; the pool follows its default policy")
        position, maps_ahead = self.l1.memory_bytes()[1], self.config.maps_ahead
        while position < self.config.geometry.pool_bytes and not self._stopping.is_set():
            length = min(_SLICE_BYTES, self.config.geometry.pool_bytes - position)
            try:
                self.files.populate(position, length)
            except NoRoomError as error:
                self.populate_error = str(error)
                logger.error("the pool stays at %d bytes: %s", position, error)
                return
            self.l1.grow(length)
            if maps_ahead:
                maps_ahead = self.files.map_ahead(position, length)
            position += length

    def wait_until_populated(self, timeout_s: float) -> None:
        self._populator.join(timeout_s)

    def abandon(self) -> None:
        """Let go of files that somebody removed. `l1` may still be used: nobody will find what it does. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        self._stopping.set()
        self._populator.join()
        weakref.finalize(self, self._names.close)
        self.files.abandon()

    def close(self, keep: bool | None = None, has_writers: bool = False) -> None:
        """Let go of the pool; it is removed unless kept. Nobody may use `l1` afterwards. Idempotent.

        With `has_writers`, a thread of this process may still write to a slot: the lock on the
        pool is left to the end of the process.
        """
        if self.is_closed:
            return
        self.is_closed = True
        self._stopping.set()
        self._populator.join()
        self._names.close()
        self._records.close()
        self.files.close(self.config.keep if keep is None else keep, not has_writers)
