"""`lmcache doctor` against real servers, with an engine registered, and against what is none."""

from __future__ import annotations

import json
import os
import pathlib
import socket
from typing import Any

import pytest

from lmcache.cli.doctor.findings import Finding
from lmcache.core.sizes import MIB
from lmcache.integration.synthetic.engine import SyntheticConfig, SyntheticEngine
from lmcache.integration.synthetic.shape import ModelShape
from lmcache.memory.pool_files import Geometry, PoolFiles
from lmcache.testing.ports import free_port
from tests.cli.conftest import Run
from tests.cli.doctor_site import SERVER, findings_of, host_of, only, serve, transfer_of
from tests.server.conftest import StartServer
from tests.server.running import RunningServer

# Before the leak checks of each test look.
pytestmark = pytest.mark.usefixtures("server")

SHAPE = ModelShape(2, 2, 16, "bfloat16")
TOKEN = "secret-token-of-the-tests"


@pytest.fixture(autouse=True)
def no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LMCACHE_CONFIG_FILE", "LMCACHE_HTTP_URL"):
        monkeypatch.delenv(name, raising=False)


def url_of(server: RunningServer) -> str:
    return f"http://127.0.0.1:{server.http_port}"


def words_for(url: str, *flags: str, **keys: Any) -> list[str]:
    extra = {"lmcache.mp.server_urls": url} | {f"lmcache.mp.{name}": value for name, value in keys.items()}
    return serve(transfer_of(SERVER, extra), *flags)


def ask(server: RunningServer, *flags: str, **keys: Any) -> list[Finding]:
    return findings_of(words_for(server.zmq_url, *flags, **keys), http_url=url_of(server))


def test_the_line_that_the_server_prints_has_no_findings(server: RunningServer, run: Run) -> None:
    words = serve(json.dumps(server.connector))
    assert findings_of(words, http_url=url_of(server)) == []
    assert findings_of(words, LMCACHE_HTTP_URL=url_of(server)) == []
    assert run("doctor", "--server", url_of(server), "--", *words).code == 0


def test_nobody_listens(run: Run) -> None:
    port = free_port()
    found = only(findings_of(words_for(f"tcp://127.0.0.1:{port}")), "error", "Connection refused")
    assert f"`lmcache server --port {port}`" in found.remedy
    only(findings_of(words_for("ipc:///no/such/socket")), "error", "no server can be reached at ipc:///no/such/socket")
    assert run("doctor", "--", *words_for(f"tcp://127.0.0.1:{port}")).code == 1


def test_somebody_else_listens(server: RunningServer) -> None:
    host = host_of()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = words_for(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        host = type(host)(host.find_vllm, timeout_s=0.3)
        found = only(findings_of(words, host=host), "error", "nobody answers there as an lmcache server")
    assert "not that of its HTTP API" in found.remedy


def test_chunks_of_the_server_against_blocks(server: RunningServer) -> None:
    assert ask(server, "--block-size", "64") == []
    found = only(ask(server, "--block-size", "96"), "error", "the --chunk-size of the server")
    assert "start the server with --chunk-size 192" in found.remedy


def test_another_hash(server: RunningServer) -> None:
    assert ask(server, hash_algorithm="blake3") == []
    only(
        ask(server, hash_algorithm="sha256_cbor"),
        "error",
        "lmcache.mp.hash_algorithm is sha256_cbor, the server's is blake3",
    )


def test_an_http_api_that_does_not_answer(server: RunningServer) -> None:
    words = words_for(server.zmq_url)
    only(findings_of(words, http_url=f"http://127.0.0.1:{free_port()}"), "error", "nothing listens at")
    assert findings_of(words, LMCACHE_HTTP_URL=f"http://127.0.0.1:{free_port()}") == []


def test_the_http_api_of_another_server(server: RunningServer, start_server: StartServer) -> None:
    other = start_server()
    other.wait_until_up()
    words = words_for(other.zmq_url)
    only(findings_of(words, http_url=url_of(server)), "warning", "is the HTTP API of another server")
    assert findings_of(words, LMCACHE_HTTP_URL=url_of(server)) == []


def test_a_pool_in_another_shared_memory(start_server: StartServer, pool_folder: pathlib.Path) -> None:
    """A folder of the same name here, with another pool in it, is what a container sees."""
    running = start_server()
    running.wait_until_up()
    words = words_for(running.zmq_url)
    aside = pool_folder.with_name(pool_folder.name + "-aside")
    pool_folder.rename(aside)
    try:
        found = only(findings_of(words), "error", "does not see the server's pool")
        assert "docker run --ipc=host" in found.what
        other = PoolFiles(pool_folder, Geometry.for_pool(MIB))
        only(findings_of(words), "error", "holds another pool")
        other.close(keep=False)
    finally:
        os.rename(aside, pool_folder)
    assert findings_of(words) == []


def test_a_server_that_asks_for_tokens(start_server: StartServer, tmp_path: pathlib.Path) -> None:
    path, api = tmp_path / "token", tmp_path / "api"
    path.write_text(TOKEN)
    api.write_text(f"read {TOKEN}\n")
    for file in (path, api):
        file.chmod(0o600)
    running = start_server("--zmq-token-file", str(path), "--http-auth-token-file", str(api))
    running.wait_until_listening()
    running.wait_until_up()
    words = words_for(running.zmq_url)
    found = only(findings_of(words), "error", "refuses us")
    assert "lmcache.mp.token_file" in found.remedy
    words = words_for(running.zmq_url, token_file=str(path))
    assert findings_of(words) == []
    found = only(findings_of(words, http_url=url_of(running)), "error", "refuses GET /status")
    assert found.remedy == "pass --server-token-file FILE"


def test_engines_that_are_registered(server: RunningServer) -> None:
    config = SyntheticConfig(server.zmq_url, SHAPE, block_size=32, num_blocks=64, model_name="org/model")
    with SyntheticEngine(config):
        assert ask(server, "--block-size", "32", "--dtype", "bfloat16") == []
        found = only(
            ask(server, "--block-size", "64", "--dtype", "half", "-tp", "2"), "warning", "serves org/model with"
        )
        assert "1 ranks (not 2), blocks of 32 tokens (not 64), KV of bfloat16 (not float16)" in found.what
        only(ask(server, "--block-size", "32", "--max-model-len", "1000000"), "warning", "a prompt of --max-model-len")
        words = ["vllm", "serve", "/models/model", *words_for(server.zmq_url)[3:]]
        only(findings_of(words, http_url=url_of(server)), "note", "serves org/model, this one /models/model")
        words = ["vllm", "serve", "org/other", *words_for(server.zmq_url)[3:]]
        assert findings_of(words, http_url=url_of(server)) == []
