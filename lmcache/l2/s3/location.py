"""Where objects go: from the texts that users write to a service, a bucket and a prefix. Asks nobody."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import SplitResult, urlsplit

from lmcache.errors import ConfigError

_HELP = (
    "s3_endpoint must be a bucket's name, s3://bucket[/prefix], bucket.s3.region.amazonaws.com[/prefix], "
    "http(s)://host[:port]/bucket[/prefix], gs://bucket[/prefix], az://container[/prefix] or "
    "https://account.blob.core.windows.net/container[/prefix]"
)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_AMAZON = re.compile(r"(?:(?P<bucket>.+)\.)?s3[.-](?:(?P<region>[a-z0-9-]+)\.)?amazonaws\.com(?:\.cn)?")
_EXPRESS = re.compile(r"(?P<bucket>.+--x-s3)\.s3express-[a-z0-9-]+\.(?P<region>[a-z0-9-]+)\.amazonaws\.com")
_AZURE_HOST = ".blob.core.windows.net"
# Room for a name of ours behind it, within the 1024 bytes of all services.
_PREFIX_BYTES_MAX = 512


class Service(StrEnum):
    S3 = "s3"
    GOOGLE = "gcs"
    AZURE = "azure"


_SCHEMES = {"s3": Service.S3, "gs": Service.GOOGLE, "az": Service.AZURE}


@dataclass(frozen=True, slots=True)
class Location:
    """`endpoint_url` "": the service's own. `region` and `account` are empty where the text names none."""

    service: Service
    bucket: str
    prefix: str = ""
    endpoint_url: str = ""
    region: str = ""
    account: str = ""

    def __str__(self) -> str:
        scheme = next(scheme for scheme, service in _SCHEMES.items() if service is self.service)
        return f"{scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def parse_location(endpoint: str, prefix: str = "", endpoint_url: str = "", disable_tls: bool = False) -> Location:
    """`prefix` goes behind one that `endpoint` names. Raises ConfigError."""
    text = endpoint.strip()
    url = urlsplit(text if "://" in text else f"//{text}")
    if url.username or url.password or url.query or url.fragment:
        raise ConfigError(f"{_HELP} (no user, query or fragment)")
    if url.scheme in _SCHEMES:
        found = Location(_SCHEMES[url.scheme], url.netloc, url.path)
    elif url.scheme in ("", "http", "https"):
        found = _of_host(url)
    else:
        raise ConfigError(f"{_HELP} (got the scheme {url.scheme!r})")
    if not _BUCKET.fullmatch(found.bucket):
        raise ConfigError(f"{_HELP} (got {found.bucket!r} for a bucket)")
    whole_prefix = "/".join(part for part in (found.prefix.strip("/"), prefix.strip("/")) if part)
    _check_prefix(whole_prefix)
    if endpoint_url and found.endpoint_url:
        raise ConfigError("s3_endpoint_url is given, and s3_endpoint names a server as well: keep one of them")
    server = _endpoint_url(endpoint_url or found.endpoint_url, disable_tls)
    return Location(found.service, found.bucket, whole_prefix, server, found.region, found.account)


def _of_host(url: SplitResult) -> Location:
    """`host/path`, with or without http(s)://."""
    host, path = url.netloc, url.path.strip("/")
    first, _, rest = path.partition("/")
    amazon = _EXPRESS.fullmatch(host) or _AMAZON.fullmatch(host)
    if amazon:
        region = amazon["region"] or ""
        if amazon["bucket"]:
            return Location(Service.S3, amazon["bucket"], path, region=region)
        return Location(Service.S3, first, rest, region=region)
    if host.endswith(_AZURE_HOST):
        return Location(Service.AZURE, first, rest, account=host.removesuffix(_AZURE_HOST))
    if host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        raise ConfigError(f"{_HELP} (for {host!r}, put the bucket here and the server into s3_endpoint_url)")
    if url.scheme:
        return Location(Service.S3, first, rest, f"{url.scheme}://{host}")
    return Location(Service.S3, host, path)


def _check_prefix(prefix: str) -> None:
    parts = prefix.split("/") if prefix else []
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise ConfigError(f"the prefix {prefix!r} has a part that is empty, '.', '..' or not printable")
    if len(prefix.encode()) > _PREFIX_BYTES_MAX:
        raise ConfigError(f"the prefix may have {_PREFIX_BYTES_MAX} bytes (it has {len(prefix.encode())})")


def _endpoint_url(text: str, disable_tls: bool) -> str:
    """With a scheme, if it is not empty."""
    if not text:
        return ""
    url = urlsplit(text if "://" in text else f"{'http' if disable_tls else 'https'}://{text}")
    if url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/") or url.query or url.fragment:
        raise ConfigError(f"s3_endpoint_url must be http(s)://host[:port] (got {text!r})")
    if url.username or url.password:
        raise ConfigError("s3_endpoint_url must not hold credentials: use aws_access_key_id and aws_secret_access_key")
    if disable_tls and url.scheme == "https":
        raise ConfigError(f"disable_tls contradicts {text!r}: write http://, or leave TLS on")
    return f"{url.scheme}://{url.netloc}"
