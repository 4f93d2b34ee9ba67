"""Keys of the tiers below L1, and of which tier takes part."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lmcache.config.engine.definition import OutOfRangeError, optional, setting
from lmcache.config.engine.extra import EXTRA_CONFIG
from lmcache.config.engine.kinds import Kind, choice, number, text, texts
from lmcache.config.engine.remote_urls import PLUGIN_TYPES, SCHEMES, adapter_of_url
from lmcache.errors import ConfigError

_SIZE_GB_MAX = 8e9
_LOCATION = re.compile(rf"LocalCPUBackend|LocalDiskBackend|RemoteBackend(-({'|'.join(PLUGIN_TYPES)}))?")
_LOCATIONS = "LocalCPUBackend, LocalDiskBackend, RemoteBackend or RemoteBackend-<plugin>"
_SERDE_FIELD = (
    "is not a serde here: put one of those described with the L2 adapters into `remote_storage_plugin.<name>.serde`"
)


def _is_location(value: str) -> bool:
    return _LOCATION.fullmatch(value) is not None


def _parse_url(value: object) -> str:
    url = text().parse(value)
    try:
        adapter_of_url(url)
    except ConfigError as error:
        raise OutOfRangeError(str(error)) from error
    return url


class TierKeys:
    local_disk: str | None = optional(
        text("a folder, or several between commas"),
        "Folder of the disk tier; of several, each device takes one. `file://` may stand before each.",
    )
    local_disk_path_sharding: str = setting(choice("by_gpu"), "by_gpu", "How devices share several folders.")
    max_local_disk_size: float = setting(number(0, _SIZE_GB_MAX), 0.0, "Size of the disk tier in GiB; 0: none.")
    remote_url: str | None = optional(
        Kind("str", f"a URL of one of the schemes {', '.join(SCHEMES)}", _parse_url, bool),
        "The remote tier `RemoteBackend`, named by a URL.",
    )
    remote_serde: str = setting(
        choice("naive", "zstd", "fp8", "int8"), "naive", "Transformation of what goes to remote tiers; `naive`: none.",
        refused_values={"cachegen": _SERDE_FIELD, "kivi": _SERDE_FIELD},
    )  # fmt: skip
    remote_storage_plugins: tuple[str, ...] | None = optional(
        texts(f"a list of {', '.join(PLUGIN_TYPES)}", lambda name: name in PLUGIN_TYPES),
        "Remote tiers `RemoteBackend-<name>`; settings: `remote_storage_plugin.<name>.<field>` in extra_config.",
    )
    retrieve_locations: tuple[str, ...] | None = optional(
        texts(f"a list of {_LOCATIONS}", _is_location), "Only these tiers are looked up and loaded from; null: all."
    )
    store_location: str | None = optional(
        text(f"one of {_LOCATIONS}", _is_location), "Only this tier is stored to; null: all."
    )
    extra_config: Mapping[str, object] | None = optional(
        EXTRA_CONFIG, "Further settings, listed below. A change replaces it whole."
    )
