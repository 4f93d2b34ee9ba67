"""Keys of the internal HTTP API: where it listens, and who may call.

What decides who may call does not change by a call: those keys are fixed at the start.
"""

from __future__ import annotations

from lmcache.config.engine.definition import optional, setting
from lmcache.config.engine.kinds import FLAG, integers, number, text, texts, whole
from lmcache.config.scripts import TIMEOUT_S, TIMEOUT_S_MAX


def _is_module_name(value: str) -> bool:
    return all(part.isidentifier() for part in value.split("."))


class APIKeys:
    internal_api_server_enabled: bool = setting(
        FLAG, False, "Whether scheduler and workers serve the internal HTTP API."
    )
    internal_api_server_host: str = setting(
        text("an address or a host name", bool), "127.0.0.1", "Where it listens.", mutable=False
    )
    internal_api_server_port_start: int = setting(
        whole(1, 65535), 6999, "Port of the scheduler; worker N listens N + 1 above.", mutable=False
    )
    internal_api_server_include_index_list: tuple[int, ...] | None = optional(
        integers(), "Only these serve it: 0 is the scheduler, N + 1 worker N; null or empty: all."
    )
    internal_api_server_socket_path_prefix: str | None = optional(
        text("a path", bool), "Listen on the unix socket `<prefix>_<port>` instead of TCP.", mutable=False
    )
    internal_api_server_auth_token_file: str | None = optional(
        text("a path", bool), "File of tokens, one of which every call must then present.", mutable=False
    )
    internal_api_server_redact_env: bool = setting(FLAG, False, "Hide secrets in `/env`.", mutable=False)
    internal_api_server_disable: tuple[str, ...] = setting(
        texts("a list of modules, named without `_api`, and of paths"), (),
        "Endpoints that are not served, such as `run_script`.", mutable=False,
    )  # fmt: skip
    internal_api_server_ssl_certfile: str | None = optional(
        text("a path", bool), "Certificate (PEM) to serve HTTPS with; it may hold the key too.", mutable=False
    )
    internal_api_server_ssl_keyfile: str | None = optional(
        text("a path", bool), "Its key, not encrypted.", mutable=False
    )
    internal_api_server_script_timeout_seconds: float = setting(
        number(0, TIMEOUT_S_MAX, is_low_open=True),
        TIMEOUT_S,
        "Seconds after which a script of `/run_script` is given up.",
    )
    script_allowed_imports: tuple[str, ...] | None = optional(
        texts("a list of dotted names of modules", _is_module_name),
        "Modules that a script of `/run_script` may import.",
    )
