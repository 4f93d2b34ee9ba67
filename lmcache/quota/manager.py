"""The table of quotas: bytes allowed per tenant, kept in a file so that they survive a restart.

Limits are soft: nothing is refused for them. Each tier that honours them evicts what a tenant
holds beyond its limit.
"""

from __future__ import annotations

import math
import pathlib
import threading
from collections.abc import Mapping

from lmcache.core.keys import check_cache_salt
from lmcache.core.sizes import GIB
from lmcache.errors import ConfigError
from lmcache.quota.file import read_quotas, write_quotas

# 8 EiB: what file formats and the address space of a tier can hold.
_LIMIT_BYTES_MAX = (1 << 63) - 1


class QuotaManager:
    """Thread-safe. `default_limit_bytes` holds for every tenant that has no quota of its own.

    Two mutexes: one serialises changes, and is held while the file is written; the other
    guards the table, so that who reads never waits for a disk. A change is in the file
    before it is in force.
    """

    def __init__(self, default_limit_bytes: int = 0, path: pathlib.Path | None = None) -> None:
        """Without a path, quotas end with the process."""
        self.default_limit_bytes = _checked(default_limit_bytes)
        self.path = path
        self._table_mutex = threading.Lock()
        self._change_mutex = threading.Lock()
        self._limits: dict[str, int] = read_quotas(path) if path is not None else {}
        self._revision = 0

    def set(self, cache_salt: str, limit_bytes: int) -> None:
        """Give a tenant a quota, or change the one it has. Raises ConfigError, KeyFormatError,
        QuotaFileError; then nothing has changed."""
        check_cache_salt(cache_salt)
        limit_bytes = _checked(limit_bytes)
        with self._change_mutex:
            self._replace({**self._limits, cache_salt: limit_bytes})

    def remove(self, cache_salt: str) -> bool:
        """Take a tenant's quota away; whether it had one. Raises QuotaFileError."""
        with self._change_mutex:
            if cache_salt not in self._limits:
                return False
            self._replace({salt: limit for salt, limit in self._limits.items() if salt != cache_salt})
        return True

    def get(self, cache_salt: str) -> int | None:
        """The quota of a tenant, in bytes; None if it has none of its own."""
        with self._table_mutex:
            return self._limits.get(cache_salt)

    def list(self) -> dict[str, int]:
        """Every quota in bytes, in the order in which tenants were registered."""
        with self._table_mutex:
            return dict(self._limits)

    @property
    def revision(self) -> int:
        """Another number after every change."""
        with self._table_mutex:
            return self._revision

    def limit_bytes(self, cache_salt: str) -> int:
        """What a tenant may hold, with or without a quota of its own."""
        with self._table_mutex:
            return self._limits.get(cache_salt, self.default_limit_bytes)

    def excess(self, usage_bytes: Mapping[str, int]) -> dict[str, int]:
        """How many bytes each tenant holds beyond its limit; those within it are left out."""
        with self._table_mutex:
            limits = self._limits
            default = self.default_limit_bytes
            return {
                salt: used - limit for salt, used in usage_bytes.items() if used > (limit := limits.get(salt, default))
            }

    def is_wiped(self, cache_salt: str) -> bool:
        """Whether a tenant may keep nothing only because nobody registered it."""
        return not self.default_limit_bytes and self.get(cache_salt) is None

    def _replace(self, limits: dict[str, int]) -> None:
        """Under the change mutex. The table is never changed in place."""
        if self.path is not None:
            write_quotas(self.path, limits)
        with self._table_mutex:
            self._limits = limits
            self._revision += 1


def bytes_of_gb(limit_gb: float) -> int:
    """Whole bytes of a limit in GB of 1024^3; ConfigError unless finite and not negative."""
    limit_bytes = limit_gb * GIB
    if not math.isfinite(limit_bytes):
        raise ConfigError(f"a quota must be finite (got {limit_gb} GB)")
    return _checked(int(limit_bytes) if limit_bytes >= 0 else -1, f"{limit_gb} GB")


def _checked(limit_bytes: float, given: str = "") -> int:
    given = given or f"{limit_bytes} bytes"
    if not math.isfinite(limit_bytes) or limit_bytes > _LIMIT_BYTES_MAX:
        raise ConfigError(f"a quota must be finite and at most {_LIMIT_BYTES_MAX} bytes (got {given})")
    if limit_bytes < 0:
        raise ConfigError(f"a quota must not be negative (got {given})")
    return int(limit_bytes)
