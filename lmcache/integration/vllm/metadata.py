"""What travels between our two halves through vLLM: jobs to the workers, reports back."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from lmcache.integration.mp.jobs import LoadJob, StoreJob


@dataclass(slots=True)
class MPConnectorMetadata(KVConnectorMetadata):
    """One step's transfers. Loads are all asynchronous or all synchronous, by configuration."""

    loads: list[LoadJob] = field(default_factory=list)
    stores: list[StoreJob] = field(default_factory=list)


@dataclass(slots=True)
class MPWorkerReport(KVConnectorWorkerMetadata):
    """Jobs that ended, with how many ranks reported each; digests count as stored by rank 0's word.

    `loads` holds synchronous loads only: asynchronous ones are reported through vLLM.
    """

    stores: dict[int, int] = field(default_factory=dict)
    stored: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    loads: dict[str, int] = field(default_factory=dict)
    failed_loads: set[str] = field(default_factory=set)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> MPWorkerReport:
        if not isinstance(other, MPWorkerReport):
            raise TypeError(f"cannot aggregate a {type(other).__name__}")
        for job_id, count in other.stores.items():
            self.stores[job_id] = self.stores.get(job_id, 0) + count
        for job_id, digests in other.stored.items():
            self.stored.setdefault(job_id, digests)
        for request_id, count in other.loads.items():
            self.loads[request_id] = self.loads.get(request_id, 0) + count
        self.failed_loads |= other.failed_loads
        return self
