"""Start scripts of earlier servers write out what is the default: each documented flag with that value is accepted."""

from __future__ import annotations

import pytest

from lmcache.cli.foreign_flags import FOREIGN_FLAGS, ForeignFlag
from lmcache.cli.main import main
from lmcache.cli.server import command, parse
from lmcache.config.mp_server import MPServerConfig

# Flag and documented default of the two earlier releases, where they differ both, but for the switches, which have
# none, and for what is None or random unless it is given.
_WITH_A_MEANING = (
    ("--host", "localhost"), ("--port", "5555"), ("--chunk-size", "256"), ("--hash-algorithm", "blake3"),
    ("--engine-type", "default"), ("--supported-transfer-mode", "auto"), ("--transport", "zmq"),
    ("--session-ttl-seconds", "600"), ("--worker-reap-timeout-seconds", "120"),
    ("--worker-registration-grace-seconds", "3600"), ("--http-host", "0.0.0.0"), ("--http-host", "127.0.0.1"),
    ("--http-port", "8080"), ("--l1-align-bytes", "4096"), ("--l1-write-ttl-seconds", "600"),
    ("--l1-read-ttl-seconds", "300"), ("--eviction-trigger-watermark", "0.8"), ("--eviction-ratio", "0.2"),
    ("--l2-store-policy", "default"), ("--l2-prefetch-policy", "default"), ("--l2-prefetch-max-in-flight", "8"),
    ("--metrics-sample-rate", "0.01"),
)  # fmt: skip
_WITHOUT_A_MEANING = (
    ("--max-workers", "1"), ("--max-gpu-workers", "1"), ("--max-cpu-workers", "1"), ("--grpc-server-workers", "32"),
    ("--null-block-id", "0"), ("--kv-event-log-size", "32768"), ("--runtime-plugin-config", "{}"),
    ("--p2p-lookup-timeout", "30.0"), ("--p2p-load-timeout", "30.0"), ("--p2p-transfer-engine", "nixl"),
    ("--l1-init-size-gb", "20"), ("--gds-l1-backend", "auto"), ("--periodic-notifier-interval-ms", "5"),
    ("--coordinator-heartbeat-interval", "5.0"), ("--coordinator-l2-event-flush-interval", "1.0"),
    ("--coordinator-event-flush-interval", "1.0"), ("--coordinator-event-transport", "http"),
    ("--event-bus-queue-size", "10000"), ("--prometheus-port", "9090"), ("--extra-logging-interval", "10"),
    ("--lookup-hash-log-rotation-interval", "21600"), ("--lookup-hash-log-rotation-max-size", "104857600"),
    ("--lookup-hash-log-max-files", "100"), ("--gc-monitor-min-pause-ms", "1"), ("--gc-monitor-top-objects", "0"),
)  # fmt: skip
# Refused where they ask for something; empty text, the documented default of the first four, does not.
_EMPTY = ("--coordinator-url", "--p2p-advertise-url", "--p2p-listen-url", "--lookup-hash-log-dir")
_LISTS = ("--script-allowed-imports", "--runtime-plugin-locations")


def parsed(*flags: str) -> tuple[MPServerConfig, list[str]]:
    return parse(command.make_context("server", list(flags)).params)


@pytest.mark.parametrize(("flag", "value"), _WITH_A_MEANING)
def test_a_default_that_is_written_out_changes_nothing(flag: str, value: str) -> None:
    config, warnings = parsed(flag, value)
    plain, _ = parsed()
    assert [line for line in warnings if "no effect" in line] == []
    for group in ("mp", "storage_manager", "observability", "http"):
        found, expected = ({**vars_of(each, group), "instance_id": ""} for each in (config, plain))
        changed = {name for name in found if found[name] != expected[name]}
        # Two are other than those of the earlier releases, which the documents want so.
        assert changed <= {"http_host", "eviction_trigger_watermark"}


def vars_of(config: MPServerConfig, group: str) -> dict[str, object]:
    settings = getattr(config, group)
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


@pytest.mark.parametrize(("flag", "value"), _WITHOUT_A_MEANING)
def test_a_default_without_a_meaning_is_one_line(flag: str, value: str) -> None:
    (warning,) = parsed(flag, value)[1]
    assert warning.startswith(f"{flag} has no effect: ")


@pytest.mark.parametrize("flag", _EMPTY)
def test_off_is_accepted_in_silence(flag: str) -> None:
    assert parsed(flag, "")[1] == parsed(f"{flag}=")[1] == []


@pytest.mark.parametrize("flag", [flag for flag in FOREIGN_FLAGS if flag.takes_value], ids=lambda flag: flag.name)
def test_no_flag_asks_for_anything_by_empty_text(flag: ForeignFlag, capsys: pytest.CaptureFixture[str]) -> None:
    """What a start script makes of a variable that is not set. Beside a value it does not hide it."""
    assert parsed(flag.name, "")[1] == []
    given = (flag.name, "", flag.name, "x")
    if flag.is_refused:
        assert main(["server", *given]) == 2
        assert capsys.readouterr().err.startswith(f"lmcache: {flag.name} ")
    else:
        assert len(parsed(*given)[1]) == 1


@pytest.mark.parametrize("flag", _LISTS)
def test_a_list_may_be_empty(flag: str) -> None:
    config, warnings = parsed(flag, "--port", "6000")
    assert (config.mp.script_allowed_imports, config.mp.port, warnings) == ((), 6000, [])
    assert parsed("--port", "6000", flag)[1] == []


def test_a_list_keeps_what_stands_around_it() -> None:
    config, _ = parsed("--instance-id", "", "--script-allowed-imports", "math", "json", "--host", "127.0.0.1")
    assert config.mp.script_allowed_imports == ("math", "json")
    assert config.mp.host == "127.0.0.1"


def test_a_list_of_what_is_refused_is_refused_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["server", "--runtime-plugin-locations", "/a", "/b"]) == 2
    assert "--runtime-plugin-locations needs runtime plugins" in capsys.readouterr().err


def test_a_coordinator_that_the_environment_leaves_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCACHE_COORDINATOR_URL", "")
    assert parsed()[1] == []
