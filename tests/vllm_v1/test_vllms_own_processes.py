"""The internal API where vLLM's engine has a process of its own, as `vllm serve` runs it; over unix sockets."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lmcache.testing.vllm_engine import EngineProcess
from tests.vllm_shared.driver import spec_of
from tests.vllm_shared.prompts import prompt_of
from tests.vllm_v1.conftest import on_disk
from tests.vllm_v1.lookup_flow import SYNC, check_flow
from tests.vllm_v1.operators import Api, apis
from tests.vllm_v1.tiers import num_files
from tests.vllm_v1.traffic import Traffic
from tests.vllm_v1.waiting import wait_until

PORT = 6999
PROMPTS = [prompt_of(700, seed=1200), prompt_of(1100, seed=1201)]
HELD, HALF, NUM_CHUNKS = [512, 1024], [256, 512], 6


@dataclass
class Served:
    process: EngineProcess
    scheduler: Api
    worker: Api
    disk: pathlib.Path


@pytest.fixture(scope="module")
def served(model_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    disk = tmp_path_factory.mktemp("processes") / "disk"
    with tempfile.TemporaryDirectory(prefix="lmc-") as folder:
        prefix = f"{folder}/sockets/api"
        connector = on_disk(
            disk, internal_api_server_enabled=True, internal_api_server_socket_path_prefix=prefix
        )  # fmt: skip
        process = EngineProcess(spec_of(model_folder, connector, multiprocess=True))
        try:
            with apis(PORT, socket_prefix=prefix) as (scheduler, worker):
                for api in (scheduler, worker):
                    api.be_patient()
                yield Served(process, scheduler, worker, disk)
        finally:
            process.close()
        wait_until(lambda: not list(pathlib.Path(prefix).parent.iterdir()), "the sockets are gone")


def test_halves_answer_each_on_its_socket(served: Served) -> None:
    for api, role in ((served.scheduler, "scheduler"), (served.worker, "worker")):
        assert api.json("GET", "/meta?names=role") == {"role": role}
        info = api.json("GET", "/inference_info")
        assert info["model_config"]["num_layers"] == 4
        assert info["vllm_version"].startswith("0.32")
    assert served.scheduler.json("GET", "/freeze/status", 503)["error"] == "/freeze/status API is unavailable"
    assert len(served.worker.json("GET", "/cache/kvcache/info")["layers"]) == 4


def test_documented_flow_both_ways(served: Served) -> None:
    for prompt, num_held in zip(PROMPTS, HELD, strict=True):
        served.process.generate([prompt[:num_held]], 1)
    wait_until(lambda: num_files(served.disk) == NUM_CHUNKS, "what was computed is stored on disk")
    with Traffic(served.process, PROMPTS, "") as traffic:
        check_flow(served.scheduler, served.worker, traffic, HELD, HALF)
    traffic.check_outputs()


def test_switches_act_at_once(served: Served) -> None:
    with Traffic(served.process, PROMPTS, "") as traffic:
        assert traffic.next_round() == HELD
        before = num_files(served.disk)
        served.worker.ask("PUT", "/freeze/enable")
        assert traffic.next_round() == HELD
        served.worker.ask("DELETE", "/cache/clear?locations=LocalCPUBackend")
        assert traffic.next_round() == [0, 0]
        after = num_files(served.disk)
        served.worker.ask("PUT", "/freeze/disable")
        assert traffic.next_round() == HELD
        served.scheduler.set(min_retrieve_tokens=1000)
        assert traffic.next_round() == [0, 1024]
        served.scheduler.set(min_retrieve_tokens=0)
    traffic.check_outputs()
    assert after == before
    assert served.scheduler.lookup_name() == SYNC
