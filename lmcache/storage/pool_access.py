"""What controllers see of the open pool: its L1 and its bytes."""

from __future__ import annotations

from typing import Protocol

from lmcache.l1.manager import L1Manager


class OpenPool(Protocol):
    """One pool's files, for as long as somebody refers to them; a lost pool is replaced by another of these."""

    @property
    def l1(self) -> L1Manager: ...

    @property
    def pool_bytes(self) -> int: ...

    @property
    def is_closed(self) -> bool:
        """Whether it was lost or let go: what is in it is of no use to anybody."""

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes of a slot, writable."""
