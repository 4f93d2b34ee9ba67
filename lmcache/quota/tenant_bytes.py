"""Bytes counted by tenant. Knows neither what holds them nor any limit."""

from __future__ import annotations


class TenantBytes(dict[str, int]):
    """A tenant that holds nothing is not listed. Not thread-safe."""

    def count(self, tenant: str, num_bytes: int) -> None:
        """So many bytes came, or with a minus went."""
        held_bytes = self.get(tenant, 0) + num_bytes
        if held_bytes:
            self[tenant] = held_bytes
        else:
            self.pop(tenant, None)
