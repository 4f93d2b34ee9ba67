"""What a server says when it is up: what listens where, and how vLLM connects to it."""

from __future__ import annotations

import json

from lmcache.config.mp_server import MPConfig
from lmcache.core.sizes import format_bytes
from lmcache.engine.cache_server import MPCacheServer

_DEFAULT_PORT = 5555
# Where the connector looks, `tcp://localhost`, leads to all of these: workers run on this host.
_REACHED_BY_DEFAULT = ("localhost", "127.0.0.1", "0.0.0.0", "*")


def start_lines(
    version: str, mp: MPConfig, engine: MPCacheServer, http_address: str, zmq_address: str, ipc_url: str
) -> list[str]:
    files, recovery = engine.pool.files, engine.pool.recovery
    return [
        f"lmcache server {version} is up",
        f"  HTTP  {http_address}",
        f"  ZMQ   {zmq_address} and {ipc_url}",
        f"  pool  {files.folder}: {format_bytes(files.geometry.pool_bytes)}, {recovery.num_ready} objects found again",
        "connect vLLM with:",
        f"  {connector_argument(mp, zmq_address)}",
    ]


def connector_argument(mp: MPConfig, zmq_address: str) -> str:
    """The argument of `vllm serve` that leads to this server."""
    config: dict[str, object] = {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both"}
    extra = _connector_settings(mp, int(zmq_address.rpartition(":")[2]))
    if extra:
        config["kv_connector_extra_config"] = extra
    return f"--kv-transfer-config '{json.dumps(config, separators=(',', ':'))}'"


def _connector_settings(mp: MPConfig, port: int) -> dict[str, object]:
    settings: dict[str, object] = {}
    if mp.host not in _REACHED_BY_DEFAULT:
        settings["lmcache.mp.host"] = f"tcp://{mp.host}"
    if port != _DEFAULT_PORT:
        settings["lmcache.mp.port"] = port
    if mp.zmq_token_file is not None:
        settings["lmcache.mp.token_file"] = mp.zmq_token_file
    return settings
