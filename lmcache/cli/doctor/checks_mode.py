"""The two connectors mixed up: settings of the one given to the other."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from lmcache.cli.doctor.findings import Finding, error, warning
from lmcache.cli.doctor.subject import ENGINE_PREFIX, IN_PROCESS, MP_PREFIX, SERVER, Subject
from lmcache.config.engine import _CONFIG_DEFINITIONS
from lmcache.config.engine.sources import ENV_PREFIX, FILE_VARIABLE, is_known
from lmcache.integration.vllm.mp_config import KNOWN_KEYS

_ADDRESSES = ("server_urls", "host", "port", "token_file")
_MP_VARIABLE = "LMCACHE_MP_"
# Keys without a prefix that a connector reads, or vLLM does.
_BARE_KEYS = {
    IN_PROCESS: ("lmcache_rpc_port", "load_failure_policy", "keep_on_reset", "use_native", "use_layerwise"),
    SERVER: ("use_native",),
}
_NEAR = 0.85
_TO_SERVER = "to use a server, write kv_connector LMCacheMPConnector"
_TO_PROCESS = "to run without a server, write kv_connector LMCacheConnectorV1"


def check_mode(subject: Subject) -> Iterator[Finding]:
    if subject.connector == IN_PROCESS:
        yield from _check_in_process(subject)
    elif subject.connector == SERVER:
        yield from _check_server(subject)
    if subject.connector:
        yield from _check_bare_keys(subject)


def _check_in_process(subject: Subject) -> Iterator[Finding]:
    keys = [key for key in subject.extra if key.startswith(MP_PREFIX)]
    if any(key.removeprefix(MP_PREFIX) in _ADDRESSES for key in keys):
        yield error(
            f"LMCacheConnectorV1 is pointed at a server ({', '.join(keys)})",
            "it runs the cache inside vLLM and never asks a server", f"{_TO_SERVER}; else leave these keys out",
        )  # fmt: skip
    elif keys:
        yield warning(f"{', '.join(keys)} have no effect", "they are LMCacheMPConnector's", _TO_SERVER)
    for variable in sorted(name for name in subject.environ if name.startswith(_MP_VARIABLE)):
        yield warning(f"{variable} has no effect", "it is LMCacheMPConnector's", f"unset it; {_TO_SERVER}")


def _check_server(subject: Subject) -> Iterator[Finding]:
    keys = [key for key in subject.engine_extra if key.startswith(ENGINE_PREFIX)]
    if keys:
        yield warning(
            f"{', '.join(keys)} in kv_connector_extra_config have no effect",
            "LMCacheMPConnector reads lmcache.mp.* alone; what is cached and where is the server's to say",
            f"give these to `lmcache server` as flags; {_TO_PROCESS}",
        )
    if subject.config_file or subject.environ.get(FILE_VARIABLE):
        yield warning(
            f"{FILE_VARIABLE if not subject.config_file else '--config'} has no effect",
            "LMCacheMPConnector reads no such file", f"unset it; {_TO_PROCESS}",
        )  # fmt: skip
    variables = [name for name in sorted(subject.environ) if _is_engine_variable(name)]
    if variables:
        yield warning(
            f"{', '.join(variables)} have no effect", "they configure LMCacheConnectorV1",
            f"give these to `lmcache server` as flags; {_TO_PROCESS}",
        )  # fmt: skip


def _is_engine_variable(name: str) -> bool:
    return name.startswith(ENV_PREFIX) and name == name.upper() and is_known(name.removeprefix(ENV_PREFIX).lower())


def _check_bare_keys(subject: Subject) -> Iterator[Finding]:
    """A key of ours that lost its prefix does nothing; vLLM and others may have keys of their own here."""
    prefix = ENGINE_PREFIX if subject.connector == IN_PROCESS else MP_PREFIX
    known = list(_CONFIG_DEFINITIONS) if subject.connector == IN_PROCESS else list(KNOWN_KEYS)
    bare = _BARE_KEYS[subject.connector]
    for key, value in subject.extra.items():
        if key == ENGINE_PREFIX[:-1] and isinstance(value, dict):
            yield warning(
                "keys below lmcache in kv_connector_extra_config are ignored",
                "a dotted flag of vLLM makes an object of every part of a name, and ours are names with dots",
                'write the JSON whole, such as {"lmcache.chunk_size": 256}',
            )
            continue
        if key.startswith(ENGINE_PREFIX) or key in bare:
            continue
        near = difflib.get_close_matches(key, [*known, *bare], n=1, cutoff=_NEAR)
        if near:
            name = near[0] if near[0] in bare else f"{prefix}{near[0]}"
            yield warning(f"unknown key {key} in kv_connector_extra_config is ignored", "", f"write {name}")
