"""Settings of the memory adapter."""

from __future__ import annotations

from dataclasses import dataclass

from lmcache.core.sizes import GIB
from lmcache.l2.fields import positive


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """`max_size_gb` in GiB. `mock_bandwidth_gb`: GB a second that it pretends to reach; None: as fast as it is."""

    max_size_gb: float
    mock_bandwidth_gb: float | None = None

    def __post_init__(self) -> None:
        positive("max_size_gb", self.max_size_gb)
        if self.mock_bandwidth_gb is not None:
            positive("mock_bandwidth_gb", self.mock_bandwidth_gb)

    @property
    def capacity_bytes(self) -> int:
        return int(self.max_size_gb * GIB)
