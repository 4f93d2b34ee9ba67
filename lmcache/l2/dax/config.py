"""Settings of the DAX adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmcache.core.sizes import GIB
from lmcache.errors import ConfigError
from lmcache.l2.dax.slots import num_slots_of
from lmcache.l2.fields import flag, positive, text, whole_number

_LOAD_WORKERS_MAX = 4
_DEVICE_FIELDS = {"device_path", "max_dax_size_gb"}


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    device_path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DaxConfig:
    """One device by `device_path` and `max_dax_size_gb` (GiB), or several by `devices`, objects of the same two
    fields; none at all only with `hotplug_enabled`. `slot_bytes`: the largest payload a slot takes."""

    slot_bytes: int
    device_path: str | None = None
    max_dax_size_gb: float | None = None
    devices: Sequence[Mapping[str, Any]] | None = None
    hotplug_enabled: bool = False
    num_store_workers: int = 1
    num_lookup_workers: int = 1
    num_load_workers: int = field(default_factory=lambda: min(_LOAD_WORKERS_MAX, os.cpu_count() or 1))

    def __post_init__(self) -> None:
        whole_number("slot_bytes", self.slot_bytes)
        flag("hotplug_enabled", self.hotplug_enabled)
        for name in ("num_store_workers", "num_lookup_workers", "num_load_workers"):
            whole_number(name, getattr(self, name))
        found = self.device_settings()
        paths = [device.device_path for device in found]
        if len(set(paths)) < len(paths):
            raise ConfigError(f"each device_path must appear once (got {', '.join(paths)})")
        if not found and not self.hotplug_enabled:
            raise ConfigError(
                "`device_path` and `max_dax_size_gb`, or `devices`, are missing; only `hotplug_enabled` does without"
            )

    def device_settings(self) -> list[DeviceSettings]:
        """Raises ConfigError."""
        single = self.device_path is not None or self.max_dax_size_gb is not None
        if single and self.devices is not None:
            raise ConfigError("give either `device_path` with `max_dax_size_gb`, or `devices`, not both")
        if single:
            return [self._device(self.device_path, self.max_dax_size_gb)]
        if self.devices is None:
            return []
        if not isinstance(self.devices, list | tuple):
            raise ConfigError(f"devices must be a list (got {self.devices!r})")
        return [self._entry(number, entry) for number, entry in enumerate(self.devices)]

    def _entry(self, number: int, entry: object) -> DeviceSettings:
        if not isinstance(entry, Mapping) or set(entry) != _DEVICE_FIELDS:
            raise ConfigError(f"devices[{number}] must have `device_path` and `max_dax_size_gb` and nothing else")
        try:
            return self._device(entry["device_path"], entry["max_dax_size_gb"])
        except ConfigError as error:
            raise ConfigError(f"devices[{number}]: {error}") from error

    def _device(self, path: Any, size_gb: Any) -> DeviceSettings:
        text("device_path", path)
        if "\0" in path:
            raise ConfigError(f"device_path must not contain a NUL character (got {path!r})")
        positive("max_dax_size_gb", size_gb)
        size_bytes = int(size_gb * GIB)
        if not num_slots_of(size_bytes, self.slot_bytes):
            raise ConfigError(f"max_dax_size_gb {size_gb} does not fit one slot of {self.slot_bytes} bytes")
        return DeviceSettings(path.strip(), size_bytes)
