"""obstore as the S3 adapter uses it: a store made from settings, and its errors in our words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, S3Store

from lmcache.errors import BackendError, BackendFullError, ConfigError, ObjectMissingError
from lmcache.l2.s3.config import S3Config
from lmcache.l2.s3.location import Location, Service

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

BucketStore = S3Store | GCSStore | AzureStore

_STORES: Mapping[Service, Callable[..., BucketStore]] = {
    Service.S3: S3Store,
    Service.GOOGLE: GCSStore,
    Service.AZURE: AzureStore,
}
_CONNECT_TIMEOUT_S = 5
# A tier's breaker waits longer than this; here only what passes by itself is waited for.
_RETRIES: RetryConfig = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
_CODE = re.compile(r"<Code>([A-Za-z0-9]+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_REASON_CHARS_MAX = 300


def make_store(config: S3Config) -> BucketStore:
    """Reaches nobody yet. Raises ConfigError for options that obstore does not know."""
    location = config.location
    client: ClientConfig = {
        "allow_http": config.disable_tls or location.endpoint_url.startswith("http://"),
        "http1_only": not config.s3_prefer_http2,
        "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT_S),
        "timeout": timedelta(seconds=config.s3_request_timeout_s),
        "pool_max_idle_per_host": str(config.s3_num_io_threads),
        "user_agent": "lmcache",
    }
    make = _STORES[location.service]
    try:
        # The options come from the user, under names that only obstore can judge.
        return make(
            location.bucket, prefix=location.prefix or None, config=_options(config, location),
            client_options=client, retry_config=_RETRIES,
        )  # fmt: skip
    except (BaseError, ValueError, TypeError) as error:
        raise ConfigError(f"{location} cannot be used with these settings: {_first_line(error)}") from error


def _options(config: S3Config, location: Location) -> Mapping[str, str | bool]:
    options: dict[str, str | bool] = {}
    if location.service is Service.AZURE and location.account:
        options["account_name"] = location.account
    if location.service is Service.S3:
        # Our own checksum goes with every object: the payload need not be hashed for the signature as well.
        options = {"region": config.region, "unsigned_payload": True, "s3_express": config.s3_enable_s3express}
        if location.endpoint_url:
            options["endpoint"] = location.endpoint_url
        elif config.disable_tls:
            options["endpoint"] = f"http://s3.{config.region}.amazonaws.com"
        credentials = {
            "access_key_id": config.aws_access_key_id,
            "secret_access_key": config.aws_secret_access_key,
            "session_token": config.aws_session_token,
        }
        options |= {name: value for name, value in credentials.items() if value is not None}
    return options | dict(config.store_options)


@contextmanager
def translated(location: Location) -> Iterator[None]:
    """Whatever obstore raises becomes one of our errors, with one line of text."""
    try:
        yield
    except (BaseError, OSError) as error:
        raise _translation(error, location) from error


def _translation(error: BaseError | OSError, location: Location) -> Exception:
    text = str(error)
    code, status = _CODE.search(text), _STATUS.search(text)
    reason = " ".join(found[1] for found in (status, code) if found) or _first_line(error)
    if code and code[1] in ("NoSuchBucket", "ContainerNotFound"):
        return BackendError(f"the bucket of {location} does not exist: make it, or correct s3_endpoint")
    if isinstance(error, FileNotFoundError):
        return ObjectMissingError(f"not in {location}")
    is_denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if is_denied or (status and status[1] in ("401", "403")):
        return BackendError(
            f"access to {location} was denied ({reason}): check the keys, the clock, and that they may list the "
            "bucket and get, put and delete objects"
        )
    if (status and status[1] == "507") or (code and "StorageFull" in code[1]):
        return BackendFullError(f"{location} has no room ({reason})")
    return BackendError(f"{location} failed: {reason}")


def _first_line(error: BaseException) -> str:
    """Without the request's address, the body of the answer, and what obstore appends for its developers."""
    line = str(error).partition("\n")[0].partition("<")[0]
    return line.rpartition(" - ")[2].strip()[:_REASON_CHARS_MAX] or type(error).__name__
