"""What the scheduler half of the in-process mode tells its workers in a step, through vLLM."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

from lmcache.embedded.jobs import RetrieveJob, StoreJob


@dataclass(slots=True)
class EmbeddedMetadata(KVConnectorMetadata):
    """`released`: lookups that nobody waits for any more."""

    loads: list[RetrieveJob] = field(default_factory=list)
    stores: list[StoreJob] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
