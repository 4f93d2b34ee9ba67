"""Keys of earlier releases whose parts do not exist here: known, and answered with the reason.

A key whose promise would silently be broken is refused; one that tunes a part we do not have, or do
not need, is ignored with one line.
"""

from __future__ import annotations

from lmcache.config.engine.definition import optional, setting
from lmcache.config.engine.kinds import FLAG, integers, number, text, texts, whole


def _missing(what: str) -> str:
    return f"asks for {what}, which this release does not have"


_BLENDING = "there is no blending to tune"
_CONTROLLER = "it tunes the tie to a controller, which this release does not have"
_GROWTH = "the pool's memory is taken when it is first written to"
_HIDDEN_STATES = "hidden states are not cached"

# Keys that begin like this are not listed one by one.
FAMILIES = {
    "pd_": "there is no transfer from prefill to decode engines to tune",
    "p2p_": "there are no transfers between engines to tune",
    "gds_": "there is no GDS tier: local_disk keeps chunks in files",
    "maru_": "there is no Maru tier",
    "blend_": _BLENDING,
    "lazy_memory_": _GROWTH,
}


class ForeignKeys:
    enable_blending: bool = setting(FLAG, False, "Blending.", refusal=_missing("blending"))
    blend_min_tokens: int = setting(whole(), 256, "Blending.", no_effect=_BLENDING)
    blend_special_str: str = setting(text(), " # ", "Blending.", no_effect=_BLENDING)
    enable_pd: bool = setting(
        FLAG, False, "Transfer from prefill to decode engines.",
        refusal=_missing("a transfer from prefill to decode engines") + "; a tier that both share does as well",
    )  # fmt: skip
    enable_p2p: bool = setting(
        FLAG, False, "Transfer between engines.",
        refusal=_missing("transfers between engines") + "; a tier that all share does as well",
    )  # fmt: skip
    enable_controller: bool = setting(FLAG, False, "Tie to a controller.", refusal=_missing("a tie to a controller"))
    controller_pull_url: str | None = optional(text(), "Tie to a controller.", no_effect=_CONTROLLER)
    controller_reply_url: str | None = optional(text(), "Tie to a controller.", no_effect=_CONTROLLER)
    lmcache_worker_ports: tuple[int, ...] | None = optional(
        integers(0, 65535), "Tie to a controller.", mutable=False, no_effect=_CONTROLLER
    )
    storage_plugins: tuple[str, ...] | None = optional(
        texts(), "Storage classes of others.",
        refusal=_missing("storage classes of others") + "; remote_storage_plugins names the tiers there are",
    )  # fmt: skip
    runtime_plugin_locations: tuple[str, ...] | None = optional(
        texts(), "Scripts started beside the engine.", refusal=_missing("runtime plugins")
    )
    remote_config_url: str | None = optional(
        text(), "A service that holds settings.", refusal=_missing("settings held by a service")
    )
    app_id: str | None = optional(
        text(), "Our name at that service.", no_effect="there is no service of settings to present it to"
    )
    local_cpu_use_hugepages: bool = setting(
        FLAG, False, "Huge pages for the pool.",
        no_effect="the kernel's setting for shared memory decides "
        "(/sys/kernel/mm/transparent_hugepage/shmem_enabled)",
    )  # fmt: skip
    numa_mode: str | None = optional(
        text(), "Placement of the pool.", no_effect="memory lies where the process that first writes to it runs"
    )
    enable_lazy_memory_allocator: bool = setting(FLAG, False, "Growth of the pool.", no_effect=_GROWTH)
    run_script_api_enabled: bool = setting(
        FLAG, False, "Whether `/run_script` is served.",
        no_effect="/run_script is served unless internal_api_server_disable names run_script",
    )  # fmt: skip
    enable_hidden_state_cache: bool = setting(
        FLAG, False, "A cache of hidden states.", refusal=_missing("a cache of hidden states")
    )
    max_hidden_state_cpu_size: float = setting(number(), 2.0, "Hidden states.", no_effect=_HIDDEN_STATES)
    hidden_state_layers: tuple[str, ...] | None = optional(texts(), "Hidden states.", no_effect=_HIDDEN_STATES)
    hidden_states_retrieve_mode: str = setting(text(), "prefix_strict", "Hidden states.", no_effect=_HIDDEN_STATES)
