"""Endpoints over the manager: configuration, metadata, the inference engine, lookups, chunk statistics."""

from __future__ import annotations

import pytest

from lmcache.embedded.manager import SCHEDULER, WORKER, EmbeddedManager
from lmcache.errors import BackendError, ConfigError, DeclinedError
from lmcache.testing.embedded_fake import CountingClient, FakeClient
from tests.internal_api.asking import Asked, scheduler, worker


def test_conf_shows_every_key_and_no_secret() -> None:
    asked = worker(remote_url="redis://me:hunter2@host:1", extra_config={"s3_secret_key": "hunter2"})
    shown = asked.call("GET", "/conf")
    assert "hunter2" not in shown.text
    assert {"chunk_size", "cache_policy", "internal_api_server_enabled"} <= shown.json().keys()
    assert len(shown.json()) == len(asked.manager.config.as_dict())


def test_conf_by_names_drops_unknown_ones_and_trims_nothing() -> None:
    assert worker().json("GET", "/conf?names=chunk_size, cache_policy,nonsense,") == {"chunk_size": 256}


@pytest.mark.parametrize(
    ("body", "error"),
    [(b"{", "Invalid JSON body"), (b"", "Invalid JSON body"), (b"\xff", "Invalid JSON body"),
     (b"[" * 5000, "Invalid JSON body"), (b"[1]", "Request body must be a JSON object"),
     (b"null", "Request body must be a JSON object")],
)  # fmt: skip
def test_conf_body_of_another_form(body: bytes, error: str) -> None:
    assert worker().json("POST", "/conf", 400, content=body)["error"] == error


def test_conf_changes_are_converted_and_echoed() -> None:
    asked = worker()
    values = {"save_decode_cache": "true", "min_retrieve_tokens": "7", "cache_policy": "lfu", "priority_limit": None}
    updated = {"save_decode_cache": True, "min_retrieve_tokens": 7, "cache_policy": "LFU", "priority_limit": None}
    assert asked.json("POST", "/conf", json=values) == {"updated": updated}
    assert asked.manager.config.cache_policy == "LFU"
    assert asked.json("POST", "/conf", json={}) == {"updated": {}}


def test_conf_takes_extra_config_as_a_text_and_hides_secrets_in_the_echo() -> None:
    body = worker().json("POST", "/conf", json={"extra_config": '{"s3_secret_key": "hunter2", "ping_interval": 5}'})
    assert body == {"updated": {"extra_config": {"s3_secret_key": "***", "ping_interval": 5}}}


def test_conf_refusal_names_value_and_range_besides_the_documented_reason() -> None:
    body = worker().json("POST", "/conf", 400, json={"min_retrieve_tokens": -1, "chunk_size": 5, "x": 1})
    assert body["errors"] == {
        "min_retrieve_tokens": "Failed to set config value", "chunk_size": "Config is not mutable at runtime",
        "x": "Unknown config",
    }  # fmt: skip
    assert list(body["messages"]) == ["min_retrieve_tokens"]
    assert "-1" in body["messages"]["min_retrieve_tokens"]
    for key in ("min_retrieve_tokens", "blend_min_tokens"):  # no secrets, for all their names
        body = worker().json("POST", "/conf", 400, json={key: "abc"})
        assert body["messages"] == {key: f"{key} must be a whole number of at least 0 (got 'abc')"}


def test_subscribers_have_been_told_when_the_answer_comes() -> None:
    asked = worker()
    told: list[object] = []
    asked.manager.config.subscribe(["min_retrieve_tokens"], lambda change: told.append(change.new))
    asked.json("POST", "/conf", json={"min_retrieve_tokens": 9})
    assert told == [9]


def test_meta_hides_secrets_and_lists_every_attribute() -> None:
    body = worker().json("GET", "/meta")
    assert list(body) == [
        "model_name", "world_size", "local_world_size", "worker_id", "local_worker_id", "kv_dtype", "kv_shape",
        "use_mla", "role", "first_rank", "served_model_name", "chunk_size", "kv_layer_groups_manager", "engine_id",
        "kv_connector_extra_config",
    ]  # fmt: skip
    assert body["kv_shape"] == [32, 2, 256, 8, 128]
    assert body["kv_connector_extra_config"] == {"lmcache_rpc_port": 0, "api_token": "***"}
    assert worker().json("GET", "/meta?names=role,__class__, role") == {"role": "worker"}


def test_inference_engine_that_cannot_be_told() -> None:
    asked = worker()
    asked.manager.fake_inference.error = BackendError("no vLLM")
    for what in ("info", "version"):
        body = asked.json("GET", f"/inference_{what}", 500)
        assert body == {"error": f"Failed to get inference {what}", "message": "no vLLM"}
    asked.manager.inference = None
    assert asked.json("GET", "/inference_info?format=text") == {}


def without_lookups(role: str) -> Asked:
    asked = Asked(role)
    asked.manager.lookup = None
    return asked


@pytest.mark.parametrize("role", [SCHEDULER, WORKER])
def test_process_that_takes_no_part_in_lookups(role: str) -> None:
    asked = without_lookups(role)
    assert asked.json("GET", "/lookup/info", 503) == {"error": "API unavailable"}
    for verb in ("close", "create", "recreate"):
        assert asked.json("POST", f"/lookup/{verb}", 503) == {"error": "API unavailable"}


@pytest.mark.parametrize(("role", "what"), [(SCHEDULER, "client"), (WORKER, "server")])
def test_nothing_to_close(role: str, what: str) -> None:
    asked = Asked(role)
    first = asked.manager.lookups.current
    assert first is not None
    asked.json("POST", "/lookup/close")
    assert first.is_closed
    for verb in ("close", "recreate"):
        expected = {"error": f"lookup {what} not available", "role": role}
        assert asked.json("POST", f"/lookup/{verb}", 400) == expected
    assert asked.json("GET", "/lookup/info") == {"client": "None", "server": "None", "role": role}


def test_dry_run_changes_nothing() -> None:
    asked = worker()
    before = asked.json("GET", "/lookup/info")
    assert asked.json("POST", "/lookup/create?dryrun=true")["new"] == "LMCacheAsyncLookupServer"
    assert asked.json("GET", "/lookup/info") == before
    assert "detail" in asked.json("POST", "/lookup/create?dryrun=perhaps", 422)


def test_configuration_that_forbids_a_lookup_client() -> None:
    asked = scheduler()
    asked.manager.lookups.error = ConfigError("no tier to look into")
    expected = {"error": "no tier to look into", "role": "scheduler"}
    assert asked.json("POST", "/lookup/create", 400) == expected
    asked.manager.lookups.error = DeclinedError("no tier to look into")
    assert asked.json("POST", "/lookup/recreate", 500) == expected


def test_role_that_nobody_knows() -> None:
    asked = Asked("standalone")
    assert asked.json("POST", "/lookup/close", 400) == {"error": "Unknown role"}


def test_statistics_of_a_client_that_fails() -> None:
    asked = scheduler()
    client = CountingClient()
    asked.manager.lookups.current = client
    client.error = BackendError("the queue is full")
    for method, target, verb in (("POST", "start", "start"), ("POST", "stop", "stop"), ("POST", "reset", "reset"),
                                 ("GET", "status", "get status")):  # fmt: skip
        body = asked.json(method, f"/chunk_statistics/{target}", 500)
        assert body == {"error": f"Failed to {verb}", "message": "the queue is full"}


@pytest.mark.parametrize("target", ["start", "stop", "reset"])
def test_statistics_without_a_client_and_with_one_that_does_not_count(target: str) -> None:
    asked = scheduler()
    expected = {"error": "Not available", "message": "Client does not support statistics."}
    assert asked.json("POST", f"/chunk_statistics/{target}", 400) == expected
    asked.manager.lookups.current = None
    expected = {"error": "API unavailable", "message": "Lookup client not configured."}
    assert asked.json("POST", f"/chunk_statistics/{target}", 503) == expected


def test_a_worker_has_no_lookup_client() -> None:
    asked = worker()
    assert isinstance(asked.manager.lookups.current, FakeClient)
    manager: EmbeddedManager = asked.manager
    assert manager.lookup_client is None
