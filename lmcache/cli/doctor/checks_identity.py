"""What is told of a registered engine's identity, against what this command line would make: what differs, in words."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from lmcache.cli.doctor.subject import MP_PREFIX, Subject
from lmcache.core.identity import short_digest
from lmcache.errors import DeclinedError

Facts = dict[str, Any]

_PARALLEL = {"tensor_parallel_size": "tensor-parallel-size", "pipeline_parallel_size": "pipeline-parallel-size"}
_REVISIONS = {"revision": "revision", "code_revision": "code-revision"}
_QUANTIZATION_KEYS = ("quantization_config", "compression_config")
# What is not known of this command line: it may be either.
_UNKNOWN = object()


def differences(subject: Subject, identity: Facts) -> Iterator[str]:
    """As `theirs (not ours)`; only where both are known. Reads weights where only they can tell."""
    facts: Facts = identity.get("facts", {})
    yield from _of_vllm(subject, facts)
    for name, flag in _PARALLEL.items():
        ours = subject.command.number(flag)
        if facts.get(name, ours) != ours:
            yield f"{name} {facts[name]} (not {ours})"
    for name, flag in _REVISIONS.items():
        revision = subject.command.flags.get(flag)
        if facts.get(name, revision) != revision:
            yield f"{name} {_worded(facts[name])} (not {_worded(revision)})"
    yield from _of_quantization(subject, facts)
    yield from _of_weights(subject, identity.get("digests", {}).get("weights"))


def tells_ranks(identity: Facts) -> bool:
    """Whether it says more of them than their number."""
    facts: Facts = identity.get("facts", {})
    return _PARALLEL.keys() <= facts.keys()


def _worded(value: object) -> str:
    return "none" if value is None else str(value)


def _of_vllm(subject: Subject, facts: Facts) -> Iterator[str]:
    """Builds of one version have one identity in this."""
    ours, theirs = (subject.host.find_vllm() or "").partition("+")[0], str(facts.get("vllm", "")).partition("+")[0]
    if ours and theirs and ours != theirs:
        yield f"vLLM {theirs} (not {ours})"


def _of_quantization(subject: Subject, facts: Facts) -> Iterator[str]:
    """vLLM may choose another implementation of what was asked for, whose name has that of the method in it."""
    theirs, ours = facts.get("quantization", _UNKNOWN), _quantization(subject)
    if theirs is _UNKNOWN or ours is _UNKNOWN:
        return
    is_same = theirs == ours or (theirs is not None and ours is not None and str(ours) in str(theirs))
    if not is_same:
        yield f"quantization {_worded(theirs)} (not {_worded(ours)})"


def _quantization(subject: Subject) -> object:
    """None where there is none. A checkpoint that says its own is not read further."""
    given = subject.command.flags.get("quantization")
    if given:
        return given
    folder, config = _folder(subject), _model_config(subject)
    if folder is None or config is None:
        return _UNKNOWN
    from lmcache.integration.vllm.weights import QUANTIZATION_FILES

    says_its_own = any(key in text for text in _configs(config) for key in _QUANTIZATION_KEYS)
    return _UNKNOWN if says_its_own or any((folder / name).exists() for name in QUANTIZATION_FILES) else None


def _configs(config: Facts) -> Iterator[Facts]:
    """The model's and, of one that takes more than text, that of its text."""
    yield config
    yield from (part for part in config.values() if isinstance(part, dict))


def _of_weights(subject: Subject, theirs: object) -> Iterator[str]:
    if not isinstance(theirs, str):
        return
    ours = _weights(subject)
    if ours is not None and short_digest(ours) != theirs:
        yield "other weights"


def _weights(subject: Subject) -> dict[str, object] | None:
    """As the connector names them; None where they cannot be found or read here."""
    version = subject.extra.get(f"{MP_PREFIX}model_version")
    if version:
        return {"model_version": version}
    from lmcache.integration.vllm.weights import weights_identity  # it reads files, which few calls need

    model, flags = subject.command.model, subject.command.flags
    seed = flags.get("seed", "")
    try:
        return weights_identity(
            model, model, flags.get("load-format", "auto"), flags.get("revision"),
            int(seed) if seed.isdecimal() else 0, flags.get("download-dir"),
            has_own_code=bool((_model_config(subject) or {}).get("auto_map")),
        )  # fmt: skip
    except (DeclinedError, ModuleNotFoundError):
        return None


def _model_config(subject: Subject) -> Facts | None:
    """The model's `config.json`, if it is on this host."""
    folder = _folder(subject)
    try:
        found = json.loads((folder / "config.json").read_bytes()) if folder is not None else None
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _folder(subject: Subject) -> pathlib.Path | None:
    """Of the model, if it is on this host."""
    from lmcache.integration.vllm.weights import find_local

    flags = subject.command.flags
    try:
        return find_local(subject.command.model, flags.get("revision"), flags.get("download-dir"))
    except (DeclinedError, ModuleNotFoundError):
        return None
