"""Settings of the multi-process server, in the groups that the HTTP API shows them in.

Field names are the documented ones. A value that cannot be honoured is a ConfigError that
names its flag.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from lmcache.config.checks import check_fraction, check_module_name, check_port, check_positive, check_that, is_loopback
from lmcache.config.scripts import TIMEOUT_S, TIMEOUT_S_MAX, ScriptSettings
from lmcache.errors import ConfigError

_SHM_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_REAP_TIMEOUT_S_MIN = 30
# As many bytes as fit into the 63 bits of a quota.
_QUOTA_GB_MAX = 8e9
# The alignment of every object. A divisor of it is kept as well.
_ALIGN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class MPConfig:
    """`shm_name` names the pool; None: after the user and the port. Port 0: any free one."""

    instance_id: str
    host: str = "localhost"
    port: int = 5555
    chunk_size: int = 256
    hash_algorithm: str = "blake3"
    shm_name: str | None = None
    worker_reap_timeout_seconds: float = 120.0
    worker_registration_grace_seconds: float = 3600.0
    session_ttl_seconds: float = 600.0
    zmq_token_file: str | None = None
    script_allowed_imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_that(bool(self.host), "--host", repr(self.host), "an address or a host name")
        check_port("--port", self.port)
        check_that(self.chunk_size > 0, "--chunk-size", self.chunk_size, "a number of tokens greater than 0")
        check_positive("--session-ttl-seconds", self.session_ttl_seconds)
        self._check_pool_name()
        self._check_liveness()
        for name in self.script_allowed_imports:
            check_module_name("--script-allowed-imports", name)
        if not is_loopback(self.host) and self.zmq_token_file is None:
            raise ConfigError(
                f"--host {self.host} can be reached from other hosts: pass --zmq-token-file FILE as well "
                f"(and the same file as lmcache.mp.token_file to vLLM), or listen on localhost"
            )

    def _check_pool_name(self) -> None:
        if self.shm_name is None:
            if self.port == 0:
                raise ConfigError("--port 0 leaves the pool without a stable name: pass --shm-name NAME as well")
            return
        if not self.shm_name:
            raise ConfigError(
                "--shm-name must not be empty: without a shared pool KV would have to travel as pickles; "
                "leave the flag out for a pool named after user and port"
            )
        check_that(
            _SHM_NAME.fullmatch(self.shm_name) is not None, "--shm-name", repr(self.shm_name),
            "at most 100 letters, digits, '.', '_' and '-', not starting with '.' or '-'",
        )  # fmt: skip

    def _check_liveness(self) -> None:
        timeout_s, grace_s = self.worker_reap_timeout_seconds, self.worker_registration_grace_seconds
        check_that(
            timeout_s == 0 or _REAP_TIMEOUT_S_MIN <= timeout_s < math.inf, "--worker-reap-timeout-seconds", timeout_s,
            f"0 (off) or at least {_REAP_TIMEOUT_S_MIN}",
        )  # fmt: skip
        check_that(
            timeout_s <= grace_s < math.inf, "--worker-registration-grace-seconds", grace_s,
            f"at least --worker-reap-timeout-seconds ({timeout_s:g})",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StorageManagerConfig:
    """`l1_size_gb` in GiB; None: what an own pool left behind has, else what fits.

    `eviction_trigger_watermark` None: objects are evicted only when room is needed, and no
    more than needed. `l2_adapters`: one spec of `l2.registry` per `--l2-adapter`, in order.
    """

    l1_size_gb: float | None = None
    l1_align_bytes: int = _ALIGN_BYTES
    l1_write_ttl_seconds: float = 600.0
    l1_read_ttl_seconds: float = 300.0
    eviction_policy: str = "LRU"
    eviction_trigger_watermark: float | None = None
    eviction_ratio: float = 0.2
    default_quota_gb: float = 0.0
    quota_file: str | None = None
    l1_keep: bool = False
    l1_group: str | None = None
    numa_interleave: bool = False
    l2_adapters: tuple[object, ...] = ()
    l2_store_policy: str = "default"
    l2_prefetch_policy: str = "default"
    l2_prefetch_max_in_flight: int = 8
    l2_scrub_objects_per_second: float = 0.0
    l2_drain_timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.l1_size_gb is not None:
            check_positive("--l1-size-gb", self.l1_size_gb)
        check_that(
            self.l1_align_bytes > 0 and _ALIGN_BYTES % self.l1_align_bytes == 0, "--l1-align-bytes",
            self.l1_align_bytes, f"a divisor of {_ALIGN_BYTES}, the alignment of every object",
        )  # fmt: skip
        check_that(
            self.l2_prefetch_max_in_flight >= 1, "--l2-prefetch-max-in-flight", self.l2_prefetch_max_in_flight,
            "at least 1",
        )  # fmt: skip
        check_that(
            0 <= self.l2_scrub_objects_per_second < math.inf, "--l2-scrub-objects-per-second",
            self.l2_scrub_objects_per_second, "0 (off) or a number of objects",
        )  # fmt: skip
        check_that(
            0 <= self.l2_drain_timeout_seconds < math.inf, "--l2-drain-timeout-seconds",
            self.l2_drain_timeout_seconds, "a number of seconds, at least 0",
        )  # fmt: skip
        check_positive("--l1-write-ttl-seconds", self.l1_write_ttl_seconds)
        check_positive("--l1-read-ttl-seconds", self.l1_read_ttl_seconds)
        check_fraction("--eviction-ratio", self.eviction_ratio)
        check_that(
            0 <= self.default_quota_gb <= _QUOTA_GB_MAX, "--default-quota-gb", self.default_quota_gb,
            f"a number of GB from 0 to {_QUOTA_GB_MAX:g}",
        )  # fmt: skip
        if self.quota_file is not None:
            check_that(bool(self.quota_file), "--quota-file", repr(self.quota_file), "the path of a file")
        if self.eviction_trigger_watermark is not None:
            check_fraction("--eviction-trigger-watermark", self.eviction_trigger_watermark)


@dataclass(frozen=True, slots=True)
class ObservabilityConfig:
    log_level: str = "INFO"
    metrics_enabled: bool = True
    metrics_sample_rate: float = 0.01

    def __post_init__(self) -> None:
        check_that(0 <= self.metrics_sample_rate <= 1, "--metrics-sample-rate", self.metrics_sample_rate, "from 0 to 1")


@dataclass(frozen=True, slots=True)
class HTTPConfig:
    """`http_disable`: modules, named without `_api`, and paths. `http_extra_apis`: folders.
    `http_ssl_certfile` may hold the key too."""

    http_host: str = "127.0.0.1"
    http_port: int = 8080
    http_auth_token_file: str | None = None
    http_redact_env: bool = False
    http_disable: tuple[str, ...] = ()
    http_extra_apis: tuple[str, ...] = ()
    http_ssl_certfile: str | None = None
    http_ssl_keyfile: str | None = None
    http_script_timeout_seconds: float = TIMEOUT_S

    def __post_init__(self) -> None:
        check_that(bool(self.http_host), "--http-host", repr(self.http_host), "an address or a host name")
        check_port("--http-port", self.http_port)
        check_that(
            0 < self.http_script_timeout_seconds <= TIMEOUT_S_MAX, "--http-script-timeout-seconds",
            self.http_script_timeout_seconds, f"greater than 0 and at most {TIMEOUT_S_MAX}",
        )  # fmt: skip
        if self.http_ssl_keyfile is not None and self.http_ssl_certfile is None:
            raise ConfigError("--http-ssl-keyfile needs --http-ssl-certfile FILE, the certificate that the key is for")


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """An empty URL: this server stands alone."""

    coordinator_url: str = ""


@dataclass(frozen=True, slots=True)
class MPServerConfig:
    mp: MPConfig
    storage_manager: StorageManagerConfig = field(default_factory=StorageManagerConfig)
    observability: ObservabilityConfig = field(default_factory=ObservabilityConfig)
    http: HTTPConfig = field(default_factory=HTTPConfig)
    coordinator: CoordinatorConfig = field(default_factory=CoordinatorConfig)

    def __post_init__(self) -> None:
        if self.mp.port and self.mp.port == self.http.http_port:
            raise ConfigError(f"--port and --http-port are both {self.mp.port}: each needs a port of its own")

    @property
    def scripts(self) -> ScriptSettings:
        return ScriptSettings(self.mp.script_allowed_imports, self.http.http_script_timeout_seconds)

    def by_name(self) -> dict[str, object]:
        """The groups by the names that `app.state.configs` documents."""
        return {
            "mp": self.mp,
            "storage_manager": self.storage_manager,
            "observability": self.observability,
            "http": self.http,
            "coordinator": self.coordinator,
        }
