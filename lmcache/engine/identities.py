"""What decides whose KV is whose, as /status tells it: enough to say in what two engines differ, and no secret.

Facts are an integration's, as JSON; few of them are known to be harmless by name, and are told. Of all the
others, only a digest is.
"""

from __future__ import annotations

from collections.abc import Mapping

from lmcache.engine.registry import ClientRegistry, Engine

# Section of the facts, and what is told of it as it is. "": the facts themselves.
_TOLD = {
    "": ("vllm", "device", "max_model_len"),
    "model": ("dtype", "revision", "code_revision", "trust_remote_code", "quantization"),
    "cache": ("cache_dtype",),
    "parallel": (
        "tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size",
        "decode_context_parallel_size",
    ),
}  # fmt: skip


def report_identities(registry: ClientRegistry) -> list[dict[str, object]]:
    """One entry for each engine with a registered worker, in the order of their instance ids."""
    instance_ids: dict[str, list[int]] = {}
    for worker in registry.workers():
        instance_ids.setdefault(worker.engine_id, []).append(worker.instance_id)
    found = ((registry.engines.get(engine_id), ids) for engine_id, ids in instance_ids.items())
    return [_report(engine, ids) for engine, ids in found if engine is not None]


def _report(engine: Engine, instance_ids: list[int]) -> dict[str, object]:
    return {
        "instance_ids": instance_ids,
        "model_name": engine.model_name,
        "root": engine.root.hex()[:12] or None,
        "facts": told_facts(engine.model_facts or {}),
        "digests": engine.fact_digests,
    }


def told_facts(facts: Mapping[str, object]) -> dict[str, object]:
    """By name. Whatever is not as plain as it should be is left out."""
    told: dict[str, object] = {}
    for section, names in _TOLD.items():
        values = facts.get(section) if section else facts
        if isinstance(values, dict):
            told |= {name: values[name] for name in names if _is_plain(values.get(name, ()))}
    return told


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)
