"""Settings of the S3 adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lmcache.core.sizes import GIB, MIB
from lmcache.errors import ConfigError
from lmcache.l2.fields import flag, not_negative, positive, text, whole_number
from lmcache.l2.s3.location import Location, Service, parse_location

_IO_THREADS_MAX = 512
# What S3 takes for a part of an upload.
_PART_MIB = (5, 1024)


@dataclass(frozen=True, slots=True)
class S3Config:
    """`s3_endpoint` is a bucket or a URL of one (see `location`). Without keys, the service's own chain
    of credentials is followed. `max_capacity_gb` in GiB, 0: unlimited. Objects larger than
    `s3_part_size_mb` (MiB) travel in parts of that size. `store_options` are settings of obstore's
    store for the service, by its names."""

    s3_endpoint: str
    s3_region: str = ""
    s3_prefix: str = ""
    s3_endpoint_url: str = ""
    s3_num_io_threads: int = 64
    s3_prefer_http2: bool = True
    s3_enable_s3express: bool = False
    s3_part_size_mb: float = 64
    s3_request_timeout_s: float = 60
    disable_tls: bool = False
    aws_access_key_id: str | None = field(default=None, repr=False)
    aws_secret_access_key: str | None = field(default=None, repr=False)
    aws_session_token: str | None = field(default=None, repr=False)
    max_capacity_gb: float = 0
    store_options: Mapping[str, str | bool] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._check_fields()
        location = self.location
        if location.service is Service.S3:
            self._check_s3(location)
        elif self.s3_endpoint_url or self.aws_access_key_id or self.s3_enable_s3express or self.disable_tls:
            raise ConfigError(
                f"{location} takes no s3_endpoint_url, s3_enable_s3express, disable_tls or keys of AWS; "
                "its own settings go into store_options"
            )

    def _check_fields(self) -> None:
        text("s3_endpoint", self.s3_endpoint)
        for name in ("s3_region", "s3_prefix", "s3_endpoint_url"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} must be a text (got {getattr(self, name)!r})")
        for name in ("s3_prefer_http2", "s3_enable_s3express", "disable_tls"):
            flag(name, getattr(self, name))
        whole_number("s3_num_io_threads", self.s3_num_io_threads)
        if self.s3_num_io_threads > _IO_THREADS_MAX:
            raise ConfigError(f"s3_num_io_threads must be at most {_IO_THREADS_MAX} (got {self.s3_num_io_threads})")
        positive("s3_part_size_mb", self.s3_part_size_mb)
        smallest, largest = _PART_MIB
        if not smallest <= self.s3_part_size_mb <= largest:
            raise ConfigError(f"s3_part_size_mb must be {smallest} to {largest} (got {self.s3_part_size_mb})")
        positive("s3_request_timeout_s", self.s3_request_timeout_s)
        not_negative("max_capacity_gb", self.max_capacity_gb)
        self._check_credentials()
        if not isinstance(self.store_options, Mapping) or not all(
            isinstance(name, str) and isinstance(value, str | bool) for name, value in self.store_options.items()
        ):
            raise ConfigError("store_options must be an object whose values are texts, true or false")

    def _check_credentials(self) -> None:
        for name in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token"):
            value = getattr(self, name)
            # The value is not repeated: it is meant to be a secret.
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise ConfigError(f"{name} must be a text that is not empty")
        if (self.aws_access_key_id is None) != (self.aws_secret_access_key is None):
            raise ConfigError("aws_access_key_id and aws_secret_access_key go together: give both or neither")
        if self.aws_session_token is not None and self.aws_access_key_id is None:
            raise ConfigError("aws_session_token needs aws_access_key_id and aws_secret_access_key")

    def _check_s3(self, location: Location) -> None:
        if not self.s3_region and not location.region:
            raise ConfigError("missing field 's3_region' (a server that is compatible with S3 mostly takes any)")
        if self.s3_region and location.region and self.s3_region != location.region:
            raise ConfigError(f"s3_region is {self.s3_region!r}, but s3_endpoint says {location.region!r}")
        if self.s3_enable_s3express and not location.bucket.endswith("--x-s3"):
            raise ConfigError(f"s3_enable_s3express needs a directory bucket (…--x-s3; got {location.bucket!r})")

    @property
    def location(self) -> Location:
        return parse_location(self.s3_endpoint, self.s3_prefix, self.s3_endpoint_url, self.disable_tls)

    @property
    def region(self) -> str:
        return self.s3_region or self.location.region

    @property
    def capacity_bytes(self) -> int:
        return int(self.max_capacity_gb * GIB)

    @property
    def part_bytes(self) -> int:
        return int(self.s3_part_size_mb * MIB)
