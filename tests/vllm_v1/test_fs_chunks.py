"""`POST /cache/load-fs-chunks` on a running vLLM: files that either mode wrote, and hits from L1 after it."""

from __future__ import annotations

import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import pytest

from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import patient_connector
from tests.server.running import RunningServer
from tests.vllm_serve.serving import is_stored_in_l2, wait_until
from tests.vllm_shared.driver import spec_of
from tests.vllm_shared.prompts import new_salt, prompt_of, same
from tests.vllm_v1.operators import Operated
from tests.vllm_v1.tiers import object_files

PROMPT = prompt_of(1100, seed="files")
NUM_CHUNKS = 4


@pytest.fixture(scope="module")
def servers_files(
    model_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, make_pool_folder: Callable[[], pathlib.Path]
) -> pathlib.Path:
    """What a server of its own wrote for a vLLM with the other connector."""
    folder, pool = tmp_path_factory.mktemp("server") / "files", make_pool_folder()
    adapter = json.dumps({"type": "fs", "base_path": str(folder)})
    server = RunningServer(pool, "--l1-size-gb", "0.125", "--l2-adapter", adapter)
    try:
        server.wait_until_up()
        process = EngineProcess(spec_of(model_folder, patient_connector(int(server.zmq_url.rsplit(":", 1)[1]))))
        try:
            assert process.call("wait_until_joined")
            process.generate([PROMPT], 1)
            process.settle()
            wait_until(lambda: is_stored_in_l2(server), "what was computed is stored")
        finally:
            process.close()
    finally:
        server.close()
        shutil.rmtree(pool, ignore_errors=True)
    assert len(object_files(folder)) == NUM_CHUNKS
    return folder


def load(operated: Operated, folder: pathlib.Path, **more: object) -> dict[str, object]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(f"chunk_size: 256\nremote_url: fs://{folder}\n")
        config.flush()
        found: dict[str, object] = operated.worker.json(
            "POST", "/cache/load-fs-chunks", body={"config_path": config.name, **more}
        )
        assert found.pop("config_path") == config.name
    return found


def check_hit(operated: Operated, salt: str) -> None:
    """From L1 alone: no tier is asked."""
    operated.worker.ask("PUT", "/freeze/enable")
    hit = operated.engine.hit(PROMPT, salt)
    assert hit.num_cached_tokens == NUM_CHUNKS * 256
    assert same(hit, operated.engine.prefix_hit(PROMPT, NUM_CHUNKS * 256))
    operated.worker.ask("PUT", "/freeze/disable")


def test_files_of_this_mode(operated: Operated, tmp_path: pathlib.Path) -> None:
    salt, folder = new_salt(), tmp_path / "files"
    operated.engine.store(PROMPT, salt)
    operated.files()
    shutil.copytree(operated.disk, folder)
    operated.worker.ask("DELETE", "/cache/clear")
    assert operated.engine.hit(PROMPT[:200], salt).num_cached_tokens == 0
    found = load(operated, folder)
    assert found == {"status": "success", "loaded_chunks": 4, "total_files": 4, "failed_keys": []}
    assert operated.num_in_l1() == NUM_CHUNKS
    check_hit(operated, salt)


def test_files_of_a_server(operated: Operated, servers_files: pathlib.Path) -> None:
    before = object_files(servers_files)
    found = load(operated, servers_files, max_chunks=1)
    assert (found["loaded_chunks"], found["total_files"], operated.num_in_l1()) == (1, NUM_CHUNKS, 1)
    assert load(operated, servers_files)["loaded_chunks"] == NUM_CHUNKS
    assert object_files(servers_files) == before
    check_hit(operated, "")


def test_files_that_are_damaged_or_not_ours(
    operated: Operated, servers_files: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "files"
    shutil.copytree(servers_files, folder)
    damaged = sorted(folder.rglob("*.data"))[0]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 0xFF
    damaged.write_bytes(content)
    found = load(operated, folder)
    assert (found["loaded_chunks"], found["total_files"]) == (NUM_CHUNKS - 1, NUM_CHUNKS)
    assert isinstance(found["failed_keys"], list)
    assert len(found["failed_keys"]) == 1
    assert found["failed_keys"][0].endswith("@bfloat16")


def test_configurations_that_do_not_do(operated: Operated, tmp_path: pathlib.Path) -> None:
    (tmp_path / "broken.yaml").write_text("chunk_size: [")
    (tmp_path / "no_folder.yaml").write_text("chunk_size: 256\n")
    for name in ("broken.yaml", "no_folder.yaml", "missing.yaml"):
        path = str(tmp_path / name)
        refused = operated.worker.json("POST", "/cache/load-fs-chunks", 400, {"config_path": path})
        assert (refused["error"], refused["config_path"]) == ("Failed to load chunks from FSConnector", path)
        assert name in refused["message"]
    operated.worker.ask("PUT", "/freeze/enable")
    (tmp_path / "fits.yaml").write_text(f"remote_url: fs://{tmp_path}\n")
    refused = operated.worker.json("POST", "/cache/load-fs-chunks", 500, {"config_path": str(tmp_path / "fits.yaml")})
    assert "frozen" in refused["message"]
