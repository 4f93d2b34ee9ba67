"""What the settings make of the HTTP API: which endpoints are served, to whom, under TLS or not."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from lmcache.config.checks import is_loopback
from lmcache.config.mp_server import HTTPConfig
from lmcache.http.guard import GuardConfig, read_tokens
from lmcache.http.registry import HTTPAPIRegistry
from lmcache.http.tls import check_certificate

_TOKENS_FLAG = "--http-auth-token-file"


@dataclass(frozen=True, slots=True)
class HTTPFront:
    config: HTTPConfig
    endpoints: HTTPAPIRegistry
    guard: GuardConfig

    @property
    def scheme(self) -> str:
        return "http" if self.config.http_ssl_certfile is None else "https"

    def exposure_warnings(self, address: str) -> list[str]:
        """One line for each thing that those who can reach `address` from other hosts should not be given."""
        if is_loopback(address):
            return []
        if not self.guard.tokens:
            return [
                f"HTTP on {address} can be reached from other hosts, and whoever reaches it may read, clear and "
                f"delete; only what needs an admin is refused to them: pass {_TOKENS_FLAG} FILE"
            ]
        if self.scheme == "http":
            return [f"HTTP on {address} takes tokens unencrypted: pass --http-ssl-certfile FILE"]
        return []


def prepare_http(config: HTTPConfig, endpoints_package: str) -> HTTPFront:
    """Reads every file that the settings name. Raises ConfigError, EndpointError."""
    if config.http_ssl_certfile is not None:
        check_certificate(
            config.http_ssl_certfile, config.http_ssl_keyfile, "--http-ssl-certfile", "--http-ssl-keyfile"
        )
    tokens = () if config.http_auth_token_file is None else read_tokens(config.http_auth_token_file, _TOKENS_FLAG)
    endpoints = HTTPAPIRegistry(endpoints_package)
    for folder in config.http_extra_apis:
        endpoints.add_folder(folder, "--http-extra-apis")
    endpoints.add_entry_points()
    endpoints.disable(config.http_disable, "--http-disable")
    own_names = frozenset({config.http_host.lower(), socket.gethostname().lower()})
    return HTTPFront(config, endpoints, GuardConfig(tokens, own_names, _TOKENS_FLAG))
