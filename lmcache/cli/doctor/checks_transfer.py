"""What vLLM is told by `--kv-transfer-config`: names, roles and policies, before anything of ours is read."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from lmcache.cli.doctor.command_line import TRANSFER_FLAG
from lmcache.cli.doctor.findings import Finding, error, note, warning
from lmcache.cli.doctor.subject import CONNECTORS, IN_PROCESS, SERVER, Subject

# Fields of vLLM 0.32's KVTransferConfig; it refuses others.
_FIELDS = (
    "kv_connector", "engine_id", "kv_buffer_device", "kv_role", "kv_port", "kv_connector_extra_config",
    "kv_connector_module_path", "enable_permute_local_kv", "kv_load_failure_policy",
)  # fmt: skip
_ROLES = ("kv_both", "kv_producer", "kv_consumer")
_POLICIES = ("recompute", "fail")
_MODULES = {
    SERVER: "lmcache.integration.vllm.lmcache_mp_connector",
    IN_PROCESS: "vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector",
}
_POLICY_KEYS = {SERVER: "lmcache.mp.load_failure_policy", IN_PROCESS: "load_failure_policy"}
_EXAMPLE = '{"kv_connector":"LMCacheMPConnector","kv_role":"kv_both"}'
_UPSTREAM_VARIABLE = "LMCACHE_USE_UPSTREAM_MP"


def check_transfer(subject: Subject) -> Iterator[Finding]:
    transfer = subject.transfer
    if transfer is None:
        if subject.command.program:
            yield error(
                f"vLLM is given no --{TRANSFER_FLAG}", "it then uses no lmcache at all",
                f"add --{TRANSFER_FLAG} '{_EXAMPLE}' for a server, or the same with {IN_PROCESS} for none",
            )  # fmt: skip
        return
    yield from _check_fields(transfer)
    yield from _check_connector(transfer, subject.connector)
    yield from _check_role(transfer)
    yield from _check_extra(transfer)
    if subject.connector:
        yield from _check_policy(transfer, subject)
        yield from _check_upstream(subject)


def _check_fields(transfer: Mapping[str, Any]) -> Iterator[Finding]:
    for name in transfer:
        if name not in _FIELDS:
            yield error(
                f"unknown field {name} in --{TRANSFER_FLAG}", "vLLM does not start with it", _nearest(name, _FIELDS)
            )


def _nearest(name: str, known: tuple[str, ...]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f"write {found[0]}" if found else f"there are: {', '.join(known)}"


def _check_connector(transfer: Mapping[str, Any], connector: str) -> Iterator[Finding]:
    given = transfer.get("kv_connector")
    if not connector:
        yield error(
            f"kv_connector {given!r} is none of lmcache's" if given else "kv_connector is missing",
            "", _nearest(str(given or ""), CONNECTORS),
        )  # fmt: skip
    module = transfer.get("kv_connector_module_path")
    if connector and module not in (None, _MODULES[connector]):
        yield warning(
            f"kv_connector_module_path is {module!r}", f"vLLM then loads {connector} from there, not from lmcache",
            f"leave it out, or write {_MODULES[connector]}",
        )  # fmt: skip


def _check_role(transfer: Mapping[str, Any]) -> Iterator[Finding]:
    role = transfer.get("kv_role")
    if role is None:
        yield error("kv_role is missing", "vLLM does not start without it", 'write "kv_role": "kv_both"')
    elif role not in _ROLES:
        yield error(f"kv_role {role!r} is unknown to vLLM", "", _nearest(str(role), _ROLES))


def _check_extra(transfer: Mapping[str, Any]) -> Iterator[Finding]:
    extra = transfer.get("kv_connector_extra_config", {})
    if not isinstance(extra, dict):
        yield error(f"kv_connector_extra_config must be a JSON object (got {extra!r})")
        return
    if extra.get("use_native"):
        yield error(
            "use_native asks for vLLM's own copy of an adapter", "which does not fit this package: vLLM ends",
            "leave use_native out",
        )  # fmt: skip


def _check_policy(transfer: Mapping[str, Any], subject: Subject) -> Iterator[Finding]:
    policy = transfer.get("kv_load_failure_policy")
    key = _POLICY_KEYS[subject.connector]
    if policy is not None and policy not in _POLICIES:
        yield error(f"kv_load_failure_policy must be one of {', '.join(_POLICIES)} (got {policy!r})")
    elif policy == "fail" and subject.extra.get(key) != "fail":
        yield note(
            "kv_load_failure_policy fail becomes recompute",
            "vLLM does not tell whether its default was chosen",
            f'write "{key}": "fail" into kv_connector_extra_config if a load that fails is to end the request',
        )
    elif policy == "recompute" and subject.extra.get(key) == "fail":
        yield warning(
            f"{key} is fail and kv_load_failure_policy is recompute", "a load that fails is then recomputed",
            "write the same into both",
        )  # fmt: skip


def _check_upstream(subject: Subject) -> Iterator[Finding]:
    if subject.connector == SERVER and subject.environ.get(_UPSTREAM_VARIABLE):
        yield error(
            f"{_UPSTREAM_VARIABLE} is set", "vLLM then uses a connector of its own, which does not speak to our server",
            f"unset {_UPSTREAM_VARIABLE}",
        )  # fmt: skip
