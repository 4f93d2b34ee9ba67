"""What `extra_config` may hold beside settings of tiers: the same kinds and ranges as the other keys.

It is free-form, and components read it through `ExtraSettings`; what is wrong in it is told with the
name of the inner key.
"""

from __future__ import annotations

from collections.abc import Mapping

from lmcache.config.engine.definition import (
    Definition,
    FrozenValues,
    OutOfRangeError,
    UnparsableError,
    collect,
    optional,
    setting,
)
from lmcache.config.engine.kinds import FLAG, OBJECT, Kind, choice, number, text, whole

_NO_PING = "whether a tier answers shows by its calls"
_NO_AUDIT = "calls of tiers are not written to an audit log"


class ExtraKeys:
    chunk_statistics_async_queue_capacity: int = setting(
        whole(1, 10_000_000), 100_000, "Lookups that wait to be counted, at most."
    )
    chunk_statistics_async_preprocess_chunks: bool = setting(
        FLAG, False, "Chunks are hashed when a lookup is recorded, not by the thread that counts."
    )
    chunk_statistics_mem_bf_expected_chunks: int = setting(
        whole(1, 10_000_000_000), 20_000_000, "Unique chunks that the Bloom filter is made for."
    )
    chunk_statistics_mem_bf_false_positive_rate: float = setting(
        number(1e-9, 0.5), 0.01, "Share of new chunks that it takes for known ones at that number."
    )
    chunk_statistics_file_rotation_size: int = setting(
        whole(1), 100 << 20, "Bytes of a file of hashes after which the next begins."
    )
    chunk_statistics_file_max_count: int = setting(
        whole(1, 1_000_000), 100, "Files that are kept; the oldest goes first."
    )
    chunk_statistics_file_output_dir: str = setting(text("a folder", bool), "./chunk_hashes", "Where they are written.")
    save_only_first_rank: bool | None = optional(
        FLAG, "Only rank 0 stores, since all ranks hold the same; null: with MLA models."
    )
    first_rank_max_local_cpu_size: float | None = optional(
        number(0, 8e9), "Size of rank 0's pool in GiB in that case; null: max_local_cpu_size."
    )
    remote_enable_mla_worker_id_as0: bool | None = optional(
        FLAG, "All ranks of MLA models use the objects of rank 0 in remote tiers.",
        no_effect="what ranks share in remote tiers follows from save_only_first_rank",
    )  # fmt: skip
    lookup_backoff_time: float = setting(
        number(0, 60), 0.01, "Seconds between two looks for the answer of an asynchronous lookup."
    )
    internal_api_server_access_log: bool = setting(FLAG, True, "Log every call of the internal API, at the level info.")
    internal_api_server_log_level: str = setting(
        choice("critical", "error", "warning", "info", "debug", "trace"), "warning", "Level from which it logs."
    )
    ping_interval: float = setting(
        number(0, is_low_open=True), 30.0, "Seconds between two checks of a remote tier.", no_effect=_NO_PING
    )
    ping_timeout: float = setting(
        number(0, is_low_open=True), 5.0, "Seconds that such a check may take.", no_effect=_NO_PING
    )
    get_blocking_failed_threshold: int | None = optional(
        whole(1), "Failed calls in a row after which a tier is left alone; null: 5. Read when a tier is opened."
    )
    waiting_time_for_recovery: float | None = optional(
        number(), "Seconds for which it is; null: 5, then twice that and so on up to 60. Read when a tier is opened."
    )
    save_chunk_meta: bool = setting(
        FLAG, True, "A header in every file.", no_effect="every file has a header, which is checked at every load"
    )
    use_exists_sync: bool = setting(
        FLAG, False, "Blocking lookups of remote tiers.", no_effect="tiers are asked by threads of their own"
    )
    use_odirect: bool = setting(FLAG, False, "O_DIRECT for the disk tier.")
    audit_backend_enabled: bool = setting(FLAG, False, "Audit log of tiers.", no_effect=_NO_AUDIT)


EXTRA_DEFINITIONS: Mapping[str, Definition] = collect(ExtraKeys)


class ExtraSettings(ExtraKeys, FrozenValues):
    """The values, with defaults where nothing was given."""


def read_extra(given: Mapping[str, object] | None) -> ExtraSettings:
    """Raises OutOfRangeError, naming the inner key."""
    values = {name: definition.default for name, definition in EXTRA_DEFINITIONS.items()}
    for name in EXTRA_DEFINITIONS.keys() & (given or {}).keys():
        try:
            values[name] = EXTRA_DEFINITIONS[name].convert(f"extra_config {name}", (given or {})[name])
        except UnparsableError as error:
            raise OutOfRangeError(str(error)) from error
    return ExtraSettings(values)


def _parse(value: object) -> Mapping[str, object]:
    found = OBJECT.parse(value)
    read_extra(found)
    return found


EXTRA_CONFIG: Kind[Mapping[str, object]] = Kind(OBJECT.name, OBJECT.allowed, _parse, OBJECT.is_allowed)
