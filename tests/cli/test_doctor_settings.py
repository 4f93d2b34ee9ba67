"""`lmcache doctor` on names, roles, values and mixed-up connectors: what is found, and that nothing else is."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from lmcache.cli.doctor.findings import Finding
from tests.cli.conftest import Run
from tests.cli.doctor_site import IN_PROCESS, SERVER, findings_of, host_of, only, serve, transfer_of

# Some of this is looked at on the host of the tests, which may have room for little.
SMALL_POOL = {"lmcache.max_local_cpu_size": 0.01}
HEALTHY = serve(transfer_of(IN_PROCESS, SMALL_POOL), "--block-size", "16")


@pytest.fixture(autouse=True)
def no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LMCACHE_CONFIG_FILE", "LMCACHE_HTTP_URL", "VLLM_RPC_BASE_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_a_healthy_command_line_has_no_findings(run: Run) -> None:
    assert findings_of(HEALTHY) == []
    ended = run("doctor", "--", *HEALTHY)
    assert (ended.code, ended.out, ended.err) == (0, "nothing found that does not fit\n", "")
    assert run("doctor", "--json", "--", *HEALTHY).json == []


def test_findings_are_printed_and_end_with_code_1(run: Run) -> None:
    words = serve(transfer_of("LMCacheConectorV1"))
    ended = run("doctor", *words)
    assert ended.code == 1
    assert ended.out == (
        "error: kv_connector 'LMCacheConectorV1' is none of lmcache's\n    remedy: write LMCacheConnectorV1\n"
    )
    assert run("doctor", "--json", "--", *words).json == [
        {"level": "error", "what": "kv_connector 'LMCacheConectorV1' is none of lmcache's", "why": "",
         "remedy": "write LMCacheConnectorV1"}
    ]  # fmt: skip


def test_warnings_alone_end_with_code_0(run: Run) -> None:
    words = serve(transfer_of(IN_PROCESS, SMALL_POOL | {"lmcache.chunk_siz": 256}))
    ended = run("doctor", "--", *words)
    assert ended.code == 0
    assert "warning: unknown key lmcache.chunk_siz in kv_connector_extra_config is ignored" in ended.out
    assert "remedy: write lmcache.chunk_size\n" in ended.out


def test_nothing_to_look_at_is_bad_use(run: Run) -> None:
    ended = run("doctor")
    assert ended.code == 2
    assert "nothing to look at" in ended.err
    assert run("doctor", "--kv-transfer-config", "{").code == 2


def test_a_vllm_without_a_connector(run: Run) -> None:
    found = only(findings_of(["vllm", "serve", "m"]), "error", "vLLM is given no --kv-transfer-config")
    assert "LMCacheMPConnector" in found.remedy


@pytest.mark.parametrize(
    ("fields", "level", "what", "remedy"),
    [
        ({"kv_rolle": "kv_both"}, "error", "unknown field kv_rolle", "write kv_role"),
        ({"kv_role": None}, "error", "kv_role is missing", 'write "kv_role": "kv_both"'),
        ({"kv_role": "kv_bot"}, "error", "kv_role 'kv_bot' is unknown", "write kv_both"),
        ({"kv_load_failure_policy": "retry"}, "error", "kv_load_failure_policy must be one of recompute, fail", ""),
        ({"kv_load_failure_policy": "fail"}, "note", "fail becomes recompute", "load_failure_policy"),
        ({"kv_connector_module_path": "my.module"}, "warning", "kv_connector_module_path", "leave it out"),
        ({"kv_connector_extra_config": ["x"]}, "error", "kv_connector_extra_config must be a JSON object", ""),
        ({"kv_connector_extra_config": {"use_native": True}}, "error", "use_native asks", "leave use_native out"),
    ],
)  # fmt: skip
def test_fields_of_the_transfer_config(fields: dict[str, Any], level: str, what: str, remedy: str) -> None:
    assert remedy in only(findings_of(serve(transfer_of(IN_PROCESS, **fields))), level, what).remedy


def test_a_policy_that_is_said_twice_is_no_finding() -> None:
    words = serve(transfer_of(IN_PROCESS, {"load_failure_policy": "fail"}, kv_load_failure_policy="fail"))
    assert findings_of(words) == []


def test_ours_inside_a_multi_connector_is_looked_at() -> None:
    inner = {"kv_connector": IN_PROCESS, "kv_role": "kv_both", "kv_connector_extra_config": {"lmcache.mp.port": 5555}}
    words = serve(transfer_of("MultiConnector", {"connectors": [{"kv_connector": "ExampleConnector"}, inner]}))
    only(findings_of(words), "error", "LMCacheConnectorV1 is pointed at a server (lmcache.mp.port)")


@pytest.mark.parametrize(
    ("connector", "extra", "environ", "level", "what"),
    [
        (IN_PROCESS, {"lmcache.mp.server_urls": "tcp://h:1"}, {}, "error", "is pointed at a server"),
        (IN_PROCESS, {"lmcache.mp.copy_threads": 2}, {}, "warning", "lmcache.mp.copy_threads have no effect"),
        (IN_PROCESS, {}, {"LMCACHE_MP_TRANSFER_MODE": "auto"}, "warning", "LMCACHE_MP_TRANSFER_MODE has no effect"),
        (IN_PROCESS, {"chunk_sise": 256}, {}, "warning", "unknown key chunk_sise"),
    ],
)  # fmt: skip
def test_settings_of_the_other_connector(
    connector: str, extra: dict[str, Any], environ: dict[str, str], level: str, what: str
) -> None:
    only(findings_of(serve(transfer_of(connector, extra)), **environ), level, what)


@pytest.mark.parametrize(
    ("extra", "environ", "what"),
    [
        ({"lmcache.chunk_size": 512}, {}, "lmcache.chunk_size in kv_connector_extra_config have no effect"),
        ({}, {"LMCACHE_CONFIG_FILE": "/x.yaml"}, "LMCACHE_CONFIG_FILE has no effect"),
        ({}, {"LMCACHE_MAX_LOCAL_CPU_SIZE": "3"}, "LMCACHE_MAX_LOCAL_CPU_SIZE have no effect"),
        ({"copy_threds": 2}, {}, "unknown key copy_threds"),
    ],
)
def test_settings_of_the_engine_given_to_a_servers_client(
    extra: dict[str, Any], environ: dict[str, str], what: str
) -> None:
    words = serve(transfer_of(SERVER, {"lmcache.mp.server_urls": "ipc:///no/such/socket", **extra}))
    found = [finding for finding in findings_of(words, **environ) if "no server can be reached" not in finding.what]
    only(found, "warning", what)


def test_names_that_a_dotted_flag_takes_apart() -> None:
    words = [*HEALTHY, "--kv-transfer-config.kv_connector_extra_config.lmcache.chunk_size", "512"]
    only(findings_of(words), "warning", "keys below lmcache in kv_connector_extra_config are ignored")


def test_vllms_own_connector_is_named() -> None:
    words = ["LMCACHE_USE_UPSTREAM_MP=1", *serve(transfer_of(SERVER, {"lmcache.mp.host": "ftp://x"}))]
    found = findings_of(words)
    assert [finding.what for finding in found if finding.level == "error"] == [
        "LMCACHE_USE_UPSTREAM_MP is set",
        "lmcache.mp.host must give tcp://host:port or ipc:///path (got 'ftp://x:5555')",
    ]


def test_values_of_a_file_that_cannot_be(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lmcache.yaml"
    path.write_text("chunk_size: 256\nmax_local_cpu_size: 1\n")
    assert findings_of(config=str(path)) == []
    path.write_text("chunk_size: 0\n")
    only(findings_of(config=str(path)), "error", "chunk_size must be a whole number from 1")
    path.write_text("remote_url: foo://somewhere\n")
    assert [finding.level.value for finding in findings_of(LMCACHE_CONFIG_FILE=str(path))] == ["error"]
    only(findings_of(config=str(tmp_path / "none.yaml")), "error", "none.yaml cannot be read")


def test_unknown_keys_are_named_with_the_nearest(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lmcache.yaml"
    path.write_text("extra_config: {save_only_frist_rank: true}\n")
    found = only(findings_of(config=str(path)), "warning", "unknown key save_only_frist_rank in extra_config")
    assert found.remedy == "write save_only_first_rank"
    found = only(findings_of(HEALTHY, LMCACHE_CHUNK_SIZ="256"), "warning", "unknown variable LMCACHE_CHUNK_SIZ")
    assert found.remedy == "write LMCACHE_CHUNK_SIZE"


@pytest.mark.parametrize(
    ("chunk_size", "flags", "version", "level", "text"),
    [
        (200, ["--block-size", "16"], "0.32.0+cpu", "error", "not a multiple of --block-size 16"),
        (192, [], "0.32.0+cpu", "error", "vLLM's default block size on CPU, 128"),
        (100, [], "0.32.0", "error", "vLLM's default block size on GPU, 16"),
    ],
)
def test_chunks_that_are_not_whole_blocks(
    chunk_size: int, flags: list[str], version: str, level: str, text: str
) -> None:
    def ask(size: int) -> list[Finding]:
        words = serve(transfer_of(IN_PROCESS, {"lmcache.chunk_size": size}), *flags)
        return [found for found in findings_of(words, host=host_of(version)) if "is a build for GPUs" not in found.what]

    found = only(ask(chunk_size), level, text)
    fitting = {200: 192, 192: 128, 100: 96}[chunk_size]
    assert found.remedy.startswith(f"set chunk_size to {fitting}, or start vLLM with a --block-size")
    assert ask(fitting) == []


def test_a_block_size_that_is_only_guessed_is_a_warning() -> None:
    words = serve(transfer_of(IN_PROCESS, {"lmcache.chunk_size": 100}))
    levels = [finding.level.value for finding in findings_of(words, host=host_of(None))]
    assert levels == ["warning", "note"]


def test_another_vllm() -> None:
    only(findings_of(HEALTHY, host=host_of("0.32.1")), "error", "vLLM 0.32.1 is a build for GPUs")
    only(findings_of(HEALTHY, host=host_of("0.33.1")), "warning", "vLLM 0.33.1 is installed")
    only(findings_of(HEALTHY, host=host_of(None)), "note", "vLLM is not installed")


def test_an_environment_without_lmcache(tmp_path: pathlib.Path) -> None:
    packages = tmp_path / "lib/python3.11/site-packages"
    for folder in (packages / "vllm", tmp_path / "bin"):
        folder.mkdir(parents=True)
    program = tmp_path / "bin" / "vllm"
    program.write_text("")
    program.chmod(0o755)
    words = [str(program), *HEALTHY[1:]]
    only(findings_of(words), "error", f"the environment {tmp_path} has vLLM and no lmcache")
    (packages / "lmcache").mkdir()
    assert findings_of(words) == []


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["-dcp", "2"], "--decode-context-parallel-size is above 1"),
        (["-tp", "2", "--nnodes", "2"], "the 2 ranks may run on several hosts"),
        (["-tp", "2", "--distributed-executor-backend=external_launcher"], "the 2 ranks may run on several hosts"),
        (["-tp", "2", "--distributed-executor-backend", "ray"], "the 2 ranks may run on several hosts"),
        (["-tp", "two"], "--tensor-parallel-size must be a whole number"),
    ],
)
def test_engines_that_cannot_be_served(flags: list[str], text: str) -> None:
    only(findings_of([*HEALTHY, *flags]), "error", text)
    assert findings_of([*HEALTHY, "-tp", "2"]) == []
