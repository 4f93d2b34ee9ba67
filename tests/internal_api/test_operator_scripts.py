"""What scripts of operators find at `app.state.lmcache_adapter` of a running API, by the documented names."""

from __future__ import annotations

import json

import pytest

from lmcache.embedded.manager import SCHEDULER, WORKER
from lmcache.errors import BackendError
from tests.internal_api.serving import Running, Serving

_HIT_LIMIT = "HitLimitLookupClient(LMCacheBypassLookupClient)"


def said(running: Running, script: str) -> str:
    """What a script with the manager as `manager` says."""
    text = f"import json\nmanager = app.state.lmcache_adapter\n{script}"
    answer = running.http.post("/run_script", files={"script": ("s.py", text.encode())})
    return answer.text


def value(running: Running, expression: str) -> object:
    return json.loads(said(running, f"result = json.dumps({expression})"))


def start(serving: Serving, role: str) -> Running:
    return serving.start(role, script_allowed_imports=["json"])


@pytest.fixture
def worker(serving: Serving) -> Running:
    return start(serving, WORKER)


@pytest.fixture
def scheduler(serving: Serving) -> Running:
    return start(serving, SCHEDULER)


def test_parts_of_a_worker(worker: Running) -> None:
    assert value(worker, "manager.config.chunk_size") == 256
    assert value(worker, "manager.lmcache_engine.is_frozen") is False
    assert said(worker, "manager.lmcache_engine.freeze(1 == 1)") == "Script executed successfully"
    assert worker.manager.fake_engine is not None
    assert worker.manager.fake_engine.is_frozen
    assert value(worker, "[manager.lmcache_engine_metadata.role, manager.lmcache_engine_metadata.worker_id]") == [
        "worker", 0,
    ]  # fmt: skip
    assert value(worker, "manager.lookup_server.name()") == "LMCacheLookupServer"
    assert value(worker, "manager.lookup_client") is None
    tensors = "{name: [tensor.shape, tensor.dtype, tensor.device] for name, tensor in manager.kv_caches.items()}"
    pages = [[2, 2, 2, 1, 2], "torch.float32", "cpu"]
    assert value(worker, tensors) == {"l.1": pages, "l.0": pages}


def test_parts_of_a_scheduler(scheduler: Running) -> None:
    nothing = "[manager.lmcache_engine, manager.lookup_server, manager.kv_caches]"
    assert value(scheduler, nothing) == [None, None, None]
    assert value(scheduler, "manager.lookup_client.name()") == _HIT_LIMIT
    assert value(scheduler, "manager.lmcache_engine_metadata.role") == "scheduler"


def test_changing_lookups(serving: Serving, worker: Running, scheduler: Running) -> None:
    assert value(scheduler, "manager.get_lookup_info()") == scheduler.http.get("/lookup/info").json()
    assert value(scheduler, "manager.create_lookup(dryrun=1 == 1)") == {"new": "LMCacheLookupClient", "dryrun": True}
    assert value(scheduler, "manager.recreate_lookup()") == {"old": _HIT_LIMIT, "new": "LMCacheLookupClient"}
    assert value(scheduler, "manager.close_lookup()") == {"old": "LMCacheLookupClient"}
    assert value(scheduler, "manager.lookup_client") is None
    assert value(scheduler, "manager.create_lookup()") == {"new": "LMCacheLookupClient"}
    assert value(worker, "manager.close_lookup()") == {"old": "LMCacheLookupServer"}
    assert value(worker, "manager.lookup_server") is None
    assert value(worker, "manager.get_lookup_info()") == {"client": "None", "server": "None", "role": "worker"}


def test_process_without_lookups(worker: Running) -> None:
    worker.manager.lookup = None
    assert value(worker, "[manager.lookup_client, manager.lookup_server]") == [None, None]
    why = "Error executing script: this process takes no part in lookups"
    for call in ("get_lookup_info", "close_lookup", "create_lookup", "recreate_lookup"):
        assert said(worker, f"manager.{call}()") == why


def test_parts_that_are_not_there_yet(worker: Running) -> None:
    worker.manager.fake_engine = worker.manager.pages = None
    assert value(worker, "[manager.lmcache_engine, manager.kv_caches]") == [None, None]


def test_inference_engine(worker: Running) -> None:
    assert value(worker, "manager.get_inference_version()") == {"vllm_version": "0.8.0"}
    assert value(worker, "manager.get_inference_info()") == worker.http.get("/inference_info").json()
    worker.manager.fake_inference.error = BackendError("no vLLM")
    assert said(worker, "manager.get_inference_info()") == "Error executing script: no vLLM"
    worker.manager.inference = None
    assert value(worker, "[manager.get_inference_info(), manager.get_inference_version()]") == [{}, {}]
