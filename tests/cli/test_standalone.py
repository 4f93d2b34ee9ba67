"""`lmcache standalone` as operators use it: a real process, asked and changed over HTTP, its effects looked at."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.cli.running_standalone import RunningStandalone
from tests.conftest import child_env
from tests.engine.tiered import wait_until

Start = Callable[..., RunningStandalone]
SMALL = ("--layers", "2", "--blocks", "64", "--heads", "1", "--head-size", "16")
L1 = "LocalCPUBackend"
DISK = "LocalDiskBackend"


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(*flags, **environ)`: up, and stopped at the end of the test at the latest."""
    running: list[RunningStandalone] = []

    def begin(*flags: str, **environ: str) -> RunningStandalone:
        running.append(RunningStandalone(*SMALL, *flags, **environ))
        running[-1].wait_until_up()
        return running[-1]

    yield begin
    for each in running:
        each.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningStandalone]:
    running = RunningStandalone(*SMALL)
    try:
        running.wait_until_up()
        yield running
    finally:
        running.close()


@pytest.fixture
def engine(shared: RunningStandalone) -> RunningStandalone:
    """Empty, and switched to what it began with."""
    shared.ask("PUT", "/freeze/disable")
    shared.ask("PUT", "/hot_cache/enable")
    shared.ask("DELETE", "/cache/clear")
    return shared


def on_disk(folder: pathlib.Path) -> dict[str, str]:
    return {"LMCACHE_LOCAL_DISK": str(folder), "LMCACHE_MAX_LOCAL_DISK_SIZE": "0.1"}


def test_what_was_stored_comes_back_byte_by_byte(engine: RunningStandalone) -> None:
    before = engine.checksums(0, 1023)
    assert len(set(before)) == 4
    engine.store("0,512")
    engine.refill()
    other = engine.checksums(0, 1023)
    assert set(other).isdisjoint(before)
    assert engine.retrieve("0,512") == 512
    assert engine.checksums(0, 1023) == before[:2] + other[2:]


def test_only_what_was_stored_is_found(engine: RunningStandalone) -> None:
    engine.store("0,600")
    assert engine.retrieve("0,600") == 512
    assert engine.retrieve("0,1024") == 512
    assert engine.retrieve("1,513") == 0
    assert engine.ask("DELETE", "/cache/clear")["num_removed"] == 2
    assert engine.retrieve("0,512") == 0


def test_frozen_nothing_is_stored(engine: RunningStandalone) -> None:
    engine.store("0,256")
    engine.ask("PUT", "/freeze/enable")
    engine.store("1000,1256")
    assert engine.retrieve("1000,1256") == 0
    assert engine.retrieve("0,256") == 256
    engine.ask("PUT", "/freeze/disable")
    engine.store("1000,1256")
    assert engine.retrieve("1000,1256") == 256


def test_without_hot_cache_nothing_stays(engine: RunningStandalone) -> None:
    engine.store("0,256")
    engine.ask("PUT", "/hot_cache/disable")
    assert engine.retrieve("0,256") == 0
    engine.store("0,256")
    assert engine.retrieve("0,256") == 0
    engine.ask("PUT", "/hot_cache/enable")
    engine.store("0,256")
    assert engine.retrieve("0,256") == 256


def test_a_bypassed_backend_is_out_of_everything(engine: RunningStandalone) -> None:
    engine.store("0,256")
    engine.ask("PUT", "/bypass/add", params={"backend_name": L1})
    assert engine.retrieve("0,256") == 0
    assert engine.ask("GET", "/bypass/list")["bypassed_backends"] == [L1]
    engine.ask("PUT", "/bypass/remove", params={"backend_name": L1})
    assert engine.retrieve("0,256") == 256


def test_who_it_is(engine: RunningStandalone) -> None:
    meta = engine.ask("GET", "/meta")
    assert (meta["model_name"], meta["role"], meta["worker_id"]) == ("standalone", "worker", 0)
    assert meta["kv_shape"] == [2, 2, 256, 1, 16]
    info = engine.ask("GET", "/cache/kvcache/info")
    assert info["layers"]["layer.0"] == {"shape": [64, 1, 16, 32], "dtype": "torch.bfloat16", "device": "cpu"}
    lookup = engine.ask("GET", "/lookup/info")
    assert (lookup["server"], lookup["role"]) == ("LMCacheLookupServer", "worker")
    assert list(engine.ask("GET", "/backends")) == [L1]


def test_metrics_read_the_engine(engine: RunningStandalone) -> None:
    engine.store("0,512")
    lines = engine.http.get("/metrics").text.splitlines()
    found = [line for line in lines if "local_cpu_hot_cache_count{" in line]
    assert len(found) == 1
    assert found[0].endswith(" 2.0"), found


def test_metrics_count_what_the_tiers_do(start: Start, tmp_path: pathlib.Path) -> None:
    """By both sets of names."""
    extra = json.dumps({"fs_base_path": str(tmp_path)})
    running = start(LMCACHE_REMOTE_STORAGE_PLUGINS="fs", LMCACHE_EXTRA_CONFIG=extra)
    running.store("0,512")

    def found(name: str) -> list[str]:
        lines = running.http.get("/metrics").text.splitlines()
        return [line.rpartition(" ")[2] for line in lines if line.startswith(name)]

    # What is cleared before a tier has it is lost.
    wait_until(lambda: found("lmcache:num_remote_write_requests_total{") == ["2.0"])
    running.ask("DELETE", "/cache/clear", params={"locations": L1})
    assert running.retrieve("0,512") == 512
    wait_until(lambda: found("lmcache:num_remote_read_requests_total{") == ["2.0"])
    assert found("lmcache_mp_l2_"), "as a server shows its tiers"


def test_slots_of_stores_and_retrieves_are_logged_on_demand(start: Start) -> None:
    running = start()
    running.store("0,256")
    running.ask("POST", "/cache/kvcache/record_slot", params={"enabled": "true"})
    running.store("0,512")
    running.retrieve("0,600")
    running.ask("POST", "/cache/kvcache/record_slot", params={"enabled": "false"})
    running.store("0,256")
    lines = [line.partition("[KVCache Check] ")[2] for line in running.errors().splitlines() if "[KVCache" in line]
    assert lines == [
        "Store request cache_api_store, tokens=512, slot_mapping: [[0,511]]",
        "Retrieve request cache_api_retrieve, tokens=512, slot_mapping: [[0,511]]",
    ]


def test_the_garbage_collector_follows_its_setting(engine: RunningStandalone) -> None:
    script = {"script": ("gc.py", b"import gc\nresult = str(gc.isenabled())", "text/x-python")}

    def is_running() -> str:
        return engine.http.post("/run_script", files=script).text

    engine.ask("POST", "/conf", json={"script_allowed_imports": ["gc"]})
    before = is_running()
    engine.ask("POST", "/conf", json={"py_enable_gc": False})
    during = is_running()
    engine.ask("POST", "/conf", json={"py_enable_gc": True, "script_allowed_imports": None})
    assert (before, during) == ("True", "False")


def test_scripts_find_the_parts_by_their_documented_names(engine: RunningStandalone) -> None:
    def said(expression: str) -> str:
        text = f"manager = app.state.lmcache_adapter\nresult = {expression}"
        return engine.http.post("/run_script", files={"script": ("s.py", text.encode())}).text

    info = engine.ask("GET", "/cache/kvcache/info")["layers"]
    shapes = {name: tuple(layer["shape"]) for name, layer in info.items()}
    assert said("{name: tensor.shape for name, tensor in manager.kv_caches.items()}") == str(shapes)
    assert said("[manager.lookup_client, manager.lookup_server.name()]") == "[None, 'LMCacheLookupServer']"
    assert said("manager.close_lookup()") == str({"old": "LMCacheLookupServer"})
    assert said("manager.lookup_server") == "None"
    assert said("manager.create_lookup()") == str({"new": "LMCacheLookupServer"})
    assert said("manager.lmcache_engine.clear()") == "0"
    assert said("[manager.get_inference_version(), manager.lmcache_engine_metadata.role]") == "[{}, 'worker']"


def test_settings_change_over_http(engine: RunningStandalone) -> None:
    assert engine.ask("POST", "/conf", json={"min_retrieve_tokens": 7})["updated"] == {"min_retrieve_tokens": 7}
    assert engine.ask("GET", "/conf", params={"names": "min_retrieve_tokens"}) == {"min_retrieve_tokens": 7}
    assert "chunk_size" in engine.ask("POST", "/conf", 400, json={"chunk_size": 32})["errors"]


def test_a_change_of_a_setting_acts(engine: RunningStandalone) -> None:
    engine.store("0,256")
    engine.ask("POST", "/conf", json={"local_cpu": False})
    try:
        assert not engine.ask("GET", "/hot_cache/status")["hot_cache"]
        assert engine.retrieve("0,256") == 0
    finally:
        engine.ask("POST", "/conf", json={"local_cpu": True})
    assert engine.ask("GET", "/hot_cache/status")["hot_cache"]


def test_the_lookup_server_is_swapped(engine: RunningStandalone) -> None:
    assert engine.ask("POST", "/lookup/close")["old"] == "LMCacheLookupServer"
    assert engine.ask("GET", "/lookup/info")["server"] == "None"
    assert engine.ask("POST", "/lookup/create")["new"] == "LMCacheLookupServer"


def test_the_disk_tier_outlives_the_process(start: Start, tmp_path: pathlib.Path) -> None:
    first = start("--seed", "3", **on_disk(tmp_path))
    wanted = first.checksums(0, 511)
    first.store("0,512")
    assert first.stop() == 0
    second = start("--seed", "9", **on_disk(tmp_path))
    assert set(second.checksums(0, 511)).isdisjoint(wanted)
    assert list(second.ask("GET", "/backends")) == [L1, DISK]
    assert second.retrieve("0,512") == 512
    assert second.checksums(0, 511) == wanted
    second.ask("DELETE", "/cache/clear", params={"locations": L1})
    second.ask("PUT", "/bypass/add", params={"backend_name": DISK})
    assert second.retrieve("0,512") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_clean_stop_leaves_nothing(start: Start, number: int) -> None:
    running = start()
    running.store("0,512")
    assert running.folder.is_dir()
    assert len(running.sockets()) == 1
    assert running.stop(number) == 0
    assert not running.folder.exists()
    assert running.sockets() == []
    assert "Traceback" not in running.errors()


def test_a_file_of_settings_and_the_shape_of_pages(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lmcache.yaml"
    path.write_text("chunk_size: 64\ninternal_api_server_enabled: false\nmax_local_cpu_size: 0.03125\n")
    running = RunningStandalone("--config", str(path), "--blocks", "8", "--block-size", "32", "--seed", "5")
    try:
        line = running.wait_until_up()
        assert "is up: without the internal API" in line
        assert line.endswith("256 tokens of pages from seed 5")
        assert running.stop() == 0
    finally:
        running.close()


@pytest.mark.parametrize(
    ("flags", "environ", "text"),
    [
        (["--block-size", "24"], {}, "chunk_size 256 is not a multiple of --block-size 24"),
        (["--blocks", "8"], {}, "8 blocks of 16 tokens hold no chunk of chunk_size 256"),
        (["--dtype", "int7"], {}, "--dtype"),
        ([], {"LMCACHE_CHUNK_SIZE": "0"}, "chunk_size must be"),
        ([], {"LMCACHE_MAX_LOCAL_CPU_SIZE": "0"}, "max_local_cpu_size leaves no pool"),
        (["--model", "a@b"], {}, "--model cannot be used: model_name must not contain '@'"),
        ([], {"LMCACHE_CONFIG_FILE": "/no/such.yaml"}, "/no/such.yaml cannot be read"),
        ([], {"LMCACHE_INTERNAL_API_SERVER_HOST": "192.0.2.1"}, "is not an address of this host"),
    ],
)
def test_what_cannot_be_is_one_line(flags: list[str], environ: dict[str, str], text: str) -> None:
    running = RunningStandalone(*flags, **environ)
    try:
        assert running.read_line() == ""
        assert running.process.wait(30) == 2
        assert text in running.errors().splitlines()[-1]
        assert "Traceback" not in running.errors()
        assert running.sockets() == []
    finally:
        running.close()


def test_it_needs_no_torch_and_no_vllm() -> None:
    code = (
        "import sys, lmcache.cli.standalone, lmcache.integration.standalone.engine as e; "
        "import lmcache.v1.internal_api_server.api_server; "
        "print([name for name in ('torch', 'vllm', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_env(), check=True)
    assert found.stdout.strip() == "[]"
