"""Settings of an adapter from outside this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lmcache.core.sizes import GIB
from lmcache.errors import ConfigError
from lmcache.l2.fields import not_negative, text


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """`class_name` in the module `module_path` is called with `(settings, context, capacity_bytes)`.

    The settings are `adapter_params`, as the mapping they are or, where the module has a dataclass
    `config_class_name` for them, as one of those. `max_capacity_gb` in GiB; 0: unlimited.
    """

    module_path: str
    class_name: str
    adapter_params: Mapping[str, object] = field(default_factory=dict, repr=False)
    config_class_name: str | None = None
    max_capacity_gb: float = 0

    def __post_init__(self) -> None:
        text("module_path", self.module_path)
        text("class_name", self.class_name)
        if not isinstance(self.adapter_params, dict):
            raise ConfigError(f"adapter_params must be an object (got {self.adapter_params!r})")
        if self.config_class_name is not None:
            text("config_class_name", self.config_class_name)
        not_negative("max_capacity_gb", self.max_capacity_gb)

    @property
    def capacity_bytes(self) -> int:
        return int(self.max_capacity_gb * GIB)
