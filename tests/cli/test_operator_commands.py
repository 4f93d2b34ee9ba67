"""status, ping, conf, metrics, clear, quota, adapters, reconfigure: what they ask, print and end with."""

from __future__ import annotations

import pytest

from lmcache.testing.operator_api import FakeAdapter, FakeOperatorAPI
from tests.cli.conftest import Run, Terminal

LAYOUT = {
    "num_layers": 32, "num_blocks": 12345, "cache_size_per_token": 131072,
    "kernel_groups": [
        {"tokens_per_block": 16, "dtype": "torch.bfloat16", "engine_kv_format": "NL_X_NB_NH_BS_HS", "num_layers": 32}
    ],
}  # fmt: skip
REPORT = {
    "is_healthy": True, "engine_type": "MPCacheServer", "chunk_size": 256, "hash_algorithm": "blake3",
    "active_sessions": 2, "active_prefetch_jobs": 3, "worker_liveness": {"tracked_instances": 3},
    "cache_context_meta": {
        "10": {"model_name": "org/other", "world_size": 2, "kv_cache_layout": LAYOUT},
        "2": {"model_name": "org/model", "world_size": 1, "kv_cache_layout": LAYOUT},
    },
    "storage_manager": {
        "is_healthy": True,
        "l1_manager": {
            "is_healthy": True, "total_object_count": 123, "read_locked_count": 4, "write_locked_count": 5,
            "memory_used_bytes": 1 << 30, "memory_total_bytes": 4 << 30, "quarantined_bytes": 1 << 20,
        },
        "store_controller": {"is_healthy": True, "thread_alive": True, "pending_keys_count": 7},
        "prefetch_controller": {"is_healthy": False, "thread_alive": False, "max_in_flight": 8},
        "l2_adapters": [
            {"is_healthy": True, "type": "MockL2Adapter", "current_size_bytes": 512, "max_capacity_bytes": 2048},
            {"is_healthy": False, "type": "FSL2Adapter", "base_path": "/data", "use_odirect": False},
        ],
    },
}  # fmt: skip
METRICS = """\
# HELP lmcache_hits_total Hits
# TYPE lmcache_hits_total counter
lmcache_hits_total{cache_salt="alice"} 3.0
lmcache_hits_total{cache_salt="bob"} 1e+06
# HELP other Another
# TYPE other gauge
other NaN
"""


def test_status_is_one_page(run: Run, api: FakeOperatorAPI) -> None:
    api.state.report = REPORT
    ended = run("status")
    assert (ended.code, ended.err) == (0, "")
    assert f"MPCacheServer at {api.url}: healthy" in ended.out
    assert "[#####...............]  25.0%  1 GiB of 4 GiB" in ended.out
    assert "123, 4 being read, 5 being written" in ended.out
    rows = ended.table
    assert ["2", "org/model", "1", "32", "12345", "16", "128", "KiB", "bfloat16", "NL_X_NB_NH_BS_HS"] in rows
    assert rows.index(next(row for row in rows if row[:1] == ["2"])) < rows.index(
        next(row for row in rows if row[:1] == ["10"])
    )
    assert ["store", "yes", "yes", "pending_keys_count=7"] in rows
    assert ["prefetch", "NO", "NO", "max_in_flight=8"] in rows
    assert ["0", "MockL2Adapter", "yes", "[#####...............]", "25.0%", "512", "B"] in rows
    assert ["1", "FSL2Adapter", "NO", "-", "base_path=/data", "use_odirect=False"] in rows


def test_status_for_scripts_is_the_report(run: Run, api: FakeOperatorAPI) -> None:
    api.state.report = REPORT
    assert run("status", "--json").json == REPORT


def test_status_of_an_unhealthy_server_is_code_1(run: Run, api: FakeOperatorAPI) -> None:
    api.state.report = {**REPORT, "is_healthy": False}
    ended = run("status")
    assert ended.code == 1
    assert "NOT HEALTHY" in ended.out
    assert run("status", "--json").code == 1


def test_status_makes_do_with_what_there_is(run: Run, api: FakeOperatorAPI) -> None:
    api.state.report = {"is_healthy": True}
    ended = run("status")
    assert ended.code == 0
    assert "no worker is registered" in ended.out


def test_ping(run: Run, api: FakeOperatorAPI) -> None:
    ended = run("ping")
    assert ended.code == 0
    assert ended.out.startswith(f"{api.url} is ready (")
    found = run("ping", "--json").json
    assert (found["status"], found["url"]) == ("healthy", api.url)
    assert found["latency_ms"] > 0


def test_ping_before_the_engine_is_there(run: Run, api: FakeOperatorAPI) -> None:
    api.state.num_not_ready = 2
    ended = run("ping")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"lmcache ping: {api.url} is not ready: engine not initialized\n"
    assert run("ping", "--json").json["reason"] == "engine not initialized"


def test_ping_waits_until_it_is_ready(run: Run, api: FakeOperatorAPI) -> None:
    api.state.num_not_ready = 2
    assert run("ping", "--wait", "30").code == 0
    assert len(api.calls("GET", "/healthcheck")) == 3


def test_ping_does_not_wait_for_ever(run: Run, api: FakeOperatorAPI) -> None:
    api.state.num_not_ready = 1_000_000
    assert run("ping", "--wait", "0.3").code == 1
    assert run("ping", "--wait", "0.3", "--url", "127.0.0.1:1").code == 3


def test_conf(run: Run, api: FakeOperatorAPI) -> None:
    api.state.configs = {"mp": {"port": 5555, "shm_name": None, "l": [{"a": 1}]}, "http": {"flag": True, "none": {}}}
    assert run("conf").table == [
        ["SETTING", "VALUE"], ["mp.port", "5555"], ["mp.shm_name", "-"], ["mp.l.0.a", "1"], ["http.flag", "true"],
        ["http.none", "-"],
    ]  # fmt: skip
    assert run("conf", "--json").json == api.state.configs
    assert run("conf", "http", "--json").json == {"http": api.state.configs["http"]}
    refused = run("conf", "htp")
    assert (refused.code, refused.err) == (2, "lmcache conf: no group 'htp'; there are: mp, http\n")


def test_metrics_are_passed_on_as_they_are(run: Run, api: FakeOperatorAPI) -> None:
    api.state.metrics = METRICS
    ended = run("metrics")
    assert (ended.code, ended.out) == (0, METRICS)


def test_metrics_by_name(run: Run, api: FakeOperatorAPI) -> None:
    api.state.metrics = METRICS
    assert run("metrics", "--filter", "HITS").table == [
        ["NAME", "LABELS", "VALUE"],
        ["lmcache_hits_total", "cache_salt=alice", "3"],
        ["lmcache_hits_total", "cache_salt=bob", "1000000"],
    ]
    assert run("metrics", "--json", "--filter", "other").json == [{"name": "other", "labels": {}, "value": "nan"}]
    assert len(run("metrics", "--json").json) == 3
    nothing = run("metrics", "--filter", "misses")
    assert (nothing.code, nothing.out) == (1, "")
    assert "no series whose name contains 'misses'" in nothing.err


def test_metrics_reset(run: Run, api: FakeOperatorAPI) -> None:
    assert run("metrics", "--reset").code == 0
    assert len(api.calls("POST", "/metrics/reset")) == 1
    assert run("metrics", "--reset", "--filter", "x").code == 2


def test_what_is_no_exposition(run: Run, api: FakeOperatorAPI) -> None:
    api.state.metrics = "{{{ 1 2 3 x"
    ended = run("metrics", "--filter", "x")
    assert ended.code == 1
    assert ended.err.count("\n") == 1


def test_clear_asks_first(run: Run, api: FakeOperatorAPI) -> None:
    piped = run("clear")
    assert piped.code == 2
    assert "Pass --yes if so" in piped.err
    assert run("clear", stdin=Terminal("n\n")).code == 1
    assert not api.calls("POST", "/clear-cache")
    assert run("clear", stdin=Terminal("y\n")).code == 0
    assert run("clear", "--yes", "--json").json == {"status": "ok"}
    assert len(api.calls("POST", "/clear-cache")) == 2


@pytest.mark.parametrize(("command", "seconds"), [("clear", 300.0), ("reconfigure", 300.0), ("status", 10.0)])
def test_what_takes_the_server_long_is_waited_for(run: Run, command: str, seconds: float) -> None:
    assert f"[default: {seconds}" in " ".join(run(command, "--help").out.split())


def test_clear_of_what_is_not_in_use(run: Run, api: FakeOperatorAPI) -> None:
    assert run("clear", "--keep-locked", "--yes").code == 0
    assert [call.body for call in api.calls("POST", "/cache/clear")] == [{"tier": "l1", "force": False}]
    assert not api.calls("POST", "/clear-cache")


def test_quotas(run: Run, api: FakeOperatorAPI) -> None:
    api.state.usage_gb = {"alice": 2.5}
    assert run("quota", "set", "alice", "10").out == "alice may keep 10 GB\n"
    assert run("quota", "set", "_default", "0", "--json").json["limit_gb"] == 0.0
    assert run("quota", "list").table == [
        ["CACHE_SALT", "LIMIT", "GB", "USED", "GB", "USAGE"],
        ["alice", "10", "2.500", "[#####...............]", "25.0%"],
        ["_default", "0", "0.000", "[....................]", "0.0%"],
    ]
    assert run("quota", "list", "--json").json["users"]["alice"] == {"limit_gb": 10.0, "current_usage_gb": 2.5}
    assert run("quota", "get", "alice").table[1][:3] == ["alice", "10", "2.500"]
    assert run("quota", "get", "bob").out == "bob has no quota and holds 0.000 GB\n"
    assert run("quota", "rm", "alice").code == 0
    again = run("quota", "rm", "alice")
    assert (again.code, again.err) == (1, "lmcache quota rm: alice had no quota\n")
    assert api.state.quotas == {"_default": 0.0}


def test_a_salt_may_hold_any_character_of_a_url(run: Run, api: FakeOperatorAPI) -> None:
    assert run("quota", "set", "a?b#c d%2F é", "1").code == 0
    assert api.state.quotas == {"a?b#c d%2F é": 1.0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["set", "a/b", "1"], "cache_salt must not contain"),
        (["set", "", "1"], "the empty cache_salt is written _default"),
        (["set", "--", "alice", "-1"], "not in the range"),
        (["set", "alice", "much"], "not a valid float"),
        (["get"], "CACHE_SALT"),
    ],
)
def test_quotas_that_cannot_be(run: Run, api: FakeOperatorAPI, arguments: list[str], said: str) -> None:
    ended = run("quota", *arguments)
    assert ended.code == 2
    assert said in ended.err
    assert not api.state.calls


def test_adapters(run: Run, api: FakeOperatorAPI) -> None:
    assert run("adapters").out == f"{api.url} has no L2 adapters\n"
    api.state.adapters = [FakeAdapter("MockL2Adapter", "mock"), FakeAdapter("DaxL2Adapter", "dax", operations=("add",))]
    rows = run("adapters").table
    assert ["0", "MockL2Adapter", "yes"] in rows
    assert ["1", "DaxL2Adapter"] in rows
    assert ["dax", "0", "add"] in rows
    assert set(run("adapters", "--json").json["reconfigurable"]) == {"dax", "mock"}


def test_reconfigure_sends_numbers_as_numbers(run: Run, api: FakeOperatorAPI) -> None:
    api.state.adapters = [FakeAdapter("MockL2Adapter", "mock")]
    ended = run("reconfigure", "mock", "resize", "size=1GiB", "n=3", "force=true", "path=/dev/dax0.0", "x=NaN")
    assert ended.code == 0
    sent = api.calls("POST", "/reconfigure/mock/resize")[0].body
    assert sent == {"adapter_index": 0, "size": "1GiB", "n": 3, "force": True, "path": "/dev/dax0.0", "x": "NaN"}
    assert ended.json["operation"] == "resize"
    missing = run("reconfigure", "mock", "resize", "--adapter-index", "1")
    assert missing.code == 1
    assert "mock adapter not found" in missing.err


@pytest.mark.parametrize("field", ["size", "=1", "adapter_index=2"])
def test_fields_that_cannot_be(run: Run, api: FakeOperatorAPI, field: str) -> None:
    assert run("reconfigure", "mock", "resize", field).code == 2
    assert not api.state.calls
