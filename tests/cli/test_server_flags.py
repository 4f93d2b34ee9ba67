"""Flags of `lmcache server`: what they become, and how each bad one is refused."""

from __future__ import annotations

import logging
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

import click
import pytest

from lmcache.cli.foreign_flags import FOREIGN_FLAGS
from lmcache.cli.main import main
from lmcache.cli.server import command, parse
from lmcache.config.mp_server import MPServerConfig

_MISSING = "which this release does not have"


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("lmcache", "uvicorn")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


def parsed(*flags: str) -> tuple[MPServerConfig, list[str]]:
    context = command.make_context("server", list(flags))
    return parse(context.params)


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line that a bad start says."""
    assert main(["server", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def test_defaults() -> None:
    config, warnings = parsed()
    assert warnings == []
    assert (config.mp.host, config.mp.port, config.mp.chunk_size) == ("localhost", 5555, 256)
    assert (config.mp.hash_algorithm, config.mp.shm_name) == ("blake3", None)
    assert (config.http.http_host, config.http.http_port) == ("127.0.0.1", 8080)
    assert (config.storage_manager.l1_size_gb, config.storage_manager.eviction_policy) == (None, "LRU")
    assert config.observability.metrics_enabled is True
    assert parsed()[0].mp.instance_id != config.mp.instance_id


def test_documented_start_line_is_accepted() -> None:
    config, warnings = parsed(
        "--l1-size-gb", "100", "--eviction-policy", "LRU", "--http-host", "0.0.0.0", "--http-port", "8080"
    )  # fmt: skip
    assert warnings == []
    assert config.storage_manager.l1_size_gb == 100
    assert config.http.http_host == "0.0.0.0"


@pytest.mark.parametrize(
    ("flag", "value", "group", "expected"),
    [
        ("--instance-id", "node-7", "mp", "node-7"),
        ("--port", "6000", "mp", 6000),
        ("--chunk-size", "512", "mp", 512),
        ("--hash-algorithm", "sha256_cbor", "mp", "sha256_cbor"),
        ("--shm-name", "mine", "mp", "mine"),
        ("--session-ttl-seconds", "60", "mp", 60.0),
        ("--worker-reap-timeout-seconds", "0", "mp", 0.0),
        ("--worker-registration-grace-seconds", "200", "mp", 200.0),
        ("--l1-size-gb", "0.5", "storage_manager", 0.5),
        ("--l1-align-bytes", "512", "storage_manager", 512),
        ("--l1-write-ttl-seconds", "5", "storage_manager", 5.0),
        ("--l1-read-ttl-seconds", "6", "storage_manager", 6.0),
        ("--eviction-policy", "noop", "storage_manager", "noop"),
        ("--eviction-policy", "isolatedlru", "storage_manager", "IsolatedLRU"),
        ("--eviction-policy", "ARC", "storage_manager", "ARC"),
        ("--eviction-policy", "s3-fifo", "storage_manager", "S3-FIFO"),
        ("--default-quota-gb", "1.5", "storage_manager", 1.5),
        ("--quota-file", "/var/lib/quotas.json", "storage_manager", "/var/lib/quotas.json"),
        ("--eviction-trigger-watermark", "0.8", "storage_manager", 0.8),
        ("--l1-group", "users", "storage_manager", "users"),
        ("--http-host", "::1", "http", "::1"),
        ("--http-port", "9000", "http", 9000),
        ("--http-auth-token-file", "/etc/tokens", "http", "/etc/tokens"),
        ("--http-disable", "env, run_script,/threads", "http", ("env", "run_script", "/threads")),
        ("--http-extra-apis", "/etc/apis", "http", ("/etc/apis",)),
        ("--http-ssl-certfile", "/etc/chain.pem", "http", "/etc/chain.pem"),
        ("--http-script-timeout-seconds", "2.5", "http", 2.5),
        ("--log-level", "debug", "observability", "DEBUG"),
    ],
)
def test_flag_reaches_its_setting(flag: str, value: str, group: str, expected: Any) -> None:
    config, warnings = parsed(flag, value)
    assert warnings == []
    assert getattr(getattr(config, group), flag.removeprefix("--").replace("-", "_")) == expected


def test_switches() -> None:
    config, _ = parsed("--l1-keep", "--numa-interleave", "--disable-metrics", "--http-redact-env")
    assert config.http.http_redact_env
    assert config.storage_manager.l1_keep
    assert config.storage_manager.numa_interleave
    assert not config.observability.metrics_enabled
    assert not parsed("--disable-observability")[0].observability.metrics_enabled


def test_builtin_hash_runs_blake3_with_one_warning() -> None:
    config, warnings = parsed("--hash-algorithm", "builtin")
    assert config.mp.hash_algorithm == "blake3"
    assert len(warnings) == 1


def test_ratio_without_watermark_is_named() -> None:
    assert "--eviction-ratio" in parsed("--eviction-ratio", "0.5")[1][0]
    assert parsed("--eviction-ratio", "0.5", "--eviction-trigger-watermark", "0.9")[1] == []


@pytest.mark.parametrize("flag", FOREIGN_FLAGS, ids=lambda flag: flag.name)
def test_every_foreign_flag_is_known(flag: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = [flag.name, "1"] if flag.takes_value else [flag.name]
    if flag.is_refused:
        line = refused(capsys, *given)
        assert line.startswith(f"lmcache: {flag.name} ")
        assert _MISSING in line
    else:
        (warning,) = parsed(*given)[1]
        assert warning.startswith(f"{flag.name} has no effect: ")


def test_flag_with_many_values_takes_them_all() -> None:
    config, warnings = parsed("--script-allowed-imports", "math", "json", "--port", "6000")
    assert warnings == []
    assert (config.mp.script_allowed_imports, config.mp.port) == (("math", "json"), 6000)
    assert parsed("--script-allowed-imports", "os.path")[0].scripts.allowed_imports == ("os.path",)
    with pytest.raises(click.UsageError, match="unexpected extra argument"):
        parsed("--max-workers", "1", "2")


def test_coordinator_of_the_environment_is_refused_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LMCACHE_COORDINATOR_URL", "http://coordinator:9300")
    assert "LMCACHE_COORDINATOR_URL" in refused(capsys)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--port x", "'x' is not a valid integer"),
        ("--port 99999", "--port must be a port from 0 to 65535 (got 99999)"),
        ("--http-port -1", "--http-port must be a port"),
        (
            "--http-script-timeout-seconds 0",
            "--http-script-timeout-seconds must be greater than 0 and at most 86400",
        ),
        ("--http-script-timeout-seconds nan", "at most 86400 (got nan)"),
        ("--http-script-timeout-seconds 1e308", "at most 86400 (got 1e+308)"),
        ("--script-allowed-imports json,math", "--script-allowed-imports must be the dotted name of a module"),
        ("--script-allowed-imports os..path", "(got 'os..path')"),
        ("--port 8080", "--port and --http-port are both 8080"),
        ("--port 0", "pass --shm-name NAME"),
        ("--port", "requires an argument"),
        ("--host 0.0.0.0", "pass --zmq-token-file FILE"),
        ("--host my-host", "pass --zmq-token-file FILE"),
        ("--host=", "--host must be"),
        ("--chunk-size 0", "--chunk-size must be a number of tokens greater than 0 (got 0)"),
        ("--hash-algorithm md5", "--hash-algorithm must be one of blake3, sha256_cbor, builtin (got 'md5')"),
        ("--shm-name=", "--shm-name must not be empty"),
        ("--shm-name ../x", "--shm-name must be"),
        ("--l1-size-gb nan", "--l1-size-gb must be a number greater than 0 (got nan)"),
        ("--l1-size-gb 0", "--l1-size-gb must be"),
        ("--l1-size-gb 1000000", "pass --l1-size-gb"),
        ("--l1-align-bytes 8192", "--l1-align-bytes must be a divisor of 4096"),
        ("--l1-group no-such-group", "there is no group 'no-such-group'"),
        ("--l1-read-ttl-seconds inf", "--l1-read-ttl-seconds must be"),
        ("--eviction-policy RANDOM", "must be one of ARC, FIFO, IsolatedLRU, LFU, LRU, MRU, noop, S3-FIFO (got"),
        ("--default-quota-gb -1", "--default-quota-gb must be a number of GB from 0 to 8e+09 (got -1.0)"),
        ("--default-quota-gb inf", "--default-quota-gb must be a number of GB from 0"),
        ("--default-quota-gb nan", "--default-quota-gb must be a number of GB from 0"),
        ("--eviction-trigger-watermark 1.5", "--eviction-trigger-watermark must be"),
        ("--eviction-ratio 0", "--eviction-ratio must be"),
        ("--worker-reap-timeout-seconds 5", "must be 0 (off) or at least 30"),
        ("--worker-registration-grace-seconds 5", "at least --worker-reap-timeout-seconds (120)"),
        ("--supported-transfer-mode lmcache_driven", "device memory"),
        ("--engine-type blend", _MISSING),
        ("--engine-type other", "--engine-type must be one of default"),
        ("--transport grpc", _MISSING),
        ("--otlp-endpoint http://collector", f"needs a push of metrics, {_MISSING}; Prometheus may pull GET /metrics"),
        ("--l1-manager {}", f"needs several L1 tiers, {_MISSING}; --l1-size-gb sets"),
        ("--log-level loud", "is not one of"),
        ("--zmq-token-file /no/such/file", "--zmq-token-file /no/such/file cannot be read"),
        ("--http-host 192.0.2.1", "--http-host 192.0.2.1 is not an address of this host"),
        ("--http-ssl-keyfile /etc/key.pem", "--http-ssl-keyfile needs --http-ssl-certfile"),
        ("--http-auth-token-file /no/such/file", "--http-auth-token-file /no/such/file cannot be read"),
    ],
)
def test_bad_flag_is_one_line_that_names_it(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    own_place = [] if "--port" in flags or "--shm-name" in flags else ["--port", "0", "--shm-name", "test-refused"]
    assert said in refused(capsys, *flags.split(), *own_place)


def test_short_token_is_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    file.write_text("short")
    line = refused(capsys, "--zmq-token-file", str(file), "--port", "0", "--shm-name", "test-refused")
    assert "at least 16 characters" in line


@pytest.mark.parametrize("flag", ["--port", "--http-port"])
def test_port_in_use_is_named(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = ["--port", "0"] if flag == "--http-port" else ["--http-port", "0"]
        line = refused(capsys, flag, str(port), *other, "--shm-name", "test-refused")
    assert f"{flag} {port} is in use" in line
    assert not pathlib.Path("/dev/shm/lmcache-test-refused").exists()
