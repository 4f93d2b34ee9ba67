"""Where a call comes from: the peer of its socket, never a header; and the names in its Host and Origin."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import Scope

_LOCAL_DOMAIN = "localhost"


def is_local(scope: Scope) -> bool:
    """Whether the peer is a process of this machine, by loopback or by a Unix socket."""
    client = scope.get("client")
    if client is not None:
        return _is_loopback_address(client[0])
    server = scope.get("server")
    return server is not None and server[1] is None  # a Unix socket has a path and no port


def describe_peer(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client is not None else "unix"


def is_own_name(host_header: str, own_names: Collection[str]) -> bool:
    """Whether `Host` could not have been chosen by a foreign name server: an address, localhost, or one of ours."""
    host = _host_of(host_header)
    if host is None:
        return False
    if host == _LOCAL_DOMAIN or host.endswith(f".{_LOCAL_DOMAIN}") or host in own_names:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_same_origin(origin: str, host_header: str) -> bool:
    """Browsers write both alike: lower case, without the scheme's own port. `null` is the same as nothing."""
    try:
        return bool(host_header) and urlsplit(origin).netloc.lower() == host_header.lower()
    except ValueError:
        return False


def _is_loopback_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _host_of(host_header: str) -> str | None:
    try:
        return urlsplit(f"//{host_header}").hostname
    except ValueError:
        return None
