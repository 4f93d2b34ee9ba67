"""The tiers that the configuration asks for, as the JSON objects that `--l2-adapter` takes.

Fields are handed on as they are: an adapter knows what it takes, and names what it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lmcache.config.engine.config import LMCacheEngineConfig
from lmcache.config.engine.extra import read_extra
from lmcache.config.engine.remote_urls import adapter_of_url
from lmcache.errors import ConfigError

DISK = "LocalDiskBackend"
REMOTE = "RemoteBackend"
_PLUGIN_PREFIX = "remote_storage_plugin."
# Documented names of settings in extra_config, and the fields of the adapter behind them.
_FS_FIELDS = {
    "fs_base_path": "base_path",
    "fs_connector_relative_tmp_dir": "relative_tmp_dir",
    "fs_connector_read_ahead_size": "read_ahead_size",
    "fs_connector_use_odirect": "use_odirect",
}
_S3_PREFIXES = ("s3_", "aws_")
_S3_FIELDS = ("disable_tls",)


@dataclass(frozen=True, slots=True)
class TierSettings:
    """`name` as the internal API shows it. `adapter` may hold passwords."""

    name: str
    adapter: Mapping[str, object] = field(repr=False)


def disk_tier(config: LMCacheEngineConfig, device_index: int = 0) -> TierSettings | None:
    """The disk tier of one device. Raises ConfigError."""
    if config.local_disk is None or not config.max_local_disk_size:
        return None
    folders = [part.strip().removeprefix("file://") for part in config.local_disk.split(",")]
    if not all(folders):
        raise ConfigError(f"local_disk must name folders between commas (got {config.local_disk!r})")
    adapter: dict[str, object] = {
        "type": "fs",
        "base_path": folders[device_index % len(folders)],
        "max_capacity_gb": config.max_local_disk_size,
        # Room is made when it is needed, and no more than that.
        "eviction": {"eviction_policy": config.cache_policy, "trigger_watermark": 1.0},
    }
    if read_extra(config.extra_config).use_odirect:
        adapter["use_odirect"] = True
    return TierSettings(DISK, adapter)


def remote_tiers(config: LMCacheEngineConfig) -> tuple[TierSettings, ...]:
    """Those of `remote_storage_plugins` in their order, then that of `remote_url`. Raises ConfigError."""
    extra = config.extra_config or {}
    found = [
        TierSettings(f"{REMOTE}-{name}", {"type": name} | _general_fields(name, extra) | _plugin_fields(name, extra))
        for name in dict.fromkeys(config.remote_storage_plugins or ())
    ]
    if config.remote_url:
        adapter = adapter_of_url(config.remote_url)
        found.append(TierSettings(REMOTE, _general_fields(str(adapter["type"]), extra) | adapter))
    for tier in found:
        _check_folder(tier)
    return tuple(TierSettings(tier.name, _with_serde(tier.adapter, config.remote_serde)) for tier in found)


def tiers(config: LMCacheEngineConfig, device_index: int = 0) -> tuple[TierSettings, ...]:
    """All of them, in the order in which they are asked. Raises ConfigError."""
    disk = disk_tier(config, device_index)
    return ((disk,) if disk else ()) + remote_tiers(config)


def _plugin_fields(name: str, extra: Mapping[str, object]) -> dict[str, object]:
    prefix = f"{_PLUGIN_PREFIX}{name}."
    given = {key.removeprefix(prefix): value for key, value in extra.items() if key.startswith(prefix)}
    return {_FS_FIELDS.get(key, key) if name == "fs" else key: value for key, value in given.items()}


def _general_fields(type_name: str, extra: Mapping[str, object]) -> dict[str, object]:
    """Settings of one kind of tier that stand in extra_config without the name of a plugin."""
    if type_name == "fs":
        return {_FS_FIELDS[key]: extra[key] for key in _FS_FIELDS if key in extra}
    if type_name == "s3":
        return {key: value for key, value in extra.items() if key.startswith(_S3_PREFIXES) or key in _S3_FIELDS}
    return {}


def _check_folder(tier: TierSettings) -> None:
    if tier.adapter["type"] != "fs":
        return
    folder = tier.adapter.get("base_path")
    if not folder:
        raise ConfigError(
            f"{tier.name} needs a folder: `{_PLUGIN_PREFIX}fs.base_path` or `fs_base_path` in extra_config"
        )
    if "," in str(folder):
        raise ConfigError(f"{tier.name} takes one folder (got {folder!r})")


def _with_serde(adapter: Mapping[str, object], remote_serde: str) -> Mapping[str, object]:
    is_plain = remote_serde == "naive" or "serde" in adapter
    return adapter if is_plain else {**adapter, "serde": {"type": remote_serde}}
