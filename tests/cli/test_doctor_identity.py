"""`lmcache doctor` against a real server with engines registered as vLLM registers them: in what they differ."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec
import pytest
import zmq

from lmcache.cli.doctor.findings import Finding
from lmcache.integration.vllm.weights import weights_identity
from lmcache.memory.mapping import read_nonce
from lmcache.protocol import messages as m
from lmcache.testing.paged_memory import BLOCK_SIZE, make_layout
from lmcache.testing.waiting import PATIENCE_S
from lmcache.transport.client import Connection
from tests.cli.doctor_site import SERVER, findings_of, host_of, only, transfer_of
from tests.server.running import RunningServer

# Before the leak checks of each test look.
pytestmark = pytest.mark.usefixtures("server")


def write_model(folder: pathlib.Path, **config: object) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return str(folder)


def facts_of(model: str, tensor: int = 1, pipeline: int = 1, **of_model: object) -> dict[str, Any]:
    """As vLLM's connector makes them, as far as we look at them."""
    return {
        "vllm": "0.32.0",
        "model": {"model": model, "revision": None, "code_revision": None, "quantization": None, **of_model},
        "weights": weights_identity(model, model, "auto", None, 0),
        "parallel": {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline},
    }


class Registrations:
    """Engines without a process. Each rank is a client of its own, as is the scheduler."""

    def __init__(self, server: RunningServer, stack: ExitStack) -> None:
        self._server = server
        self._stack = stack
        self._context: zmq.Context[zmq.Socket[bytes]] = stack.enter_context(zmq.Context())
        self._num_clients = 0

    def add(self, model: str, facts: dict[str, Any]) -> None:
        num_ranks = facts["parallel"]["tensor_parallel_size"] * facts["parallel"]["pipeline_parallel_size"]
        engine_id, nonce = f"engine-{self._num_clients}", read_nonce(self._server.folder)
        layout = msgspec.json.encode(make_layout(8))
        for rank in range(num_ranks):
            self._register(m.RegisterWorker(engine_id, model, num_ranks, rank, layout, nonce))
        self._register(m.RegisterScheduler(engine_id, model, num_ranks, json.dumps(facts).encode(), nonce))

    def _register(self, message: m.Request) -> None:
        self._num_clients += 1
        connection = Connection(self._server.zmq_url, 7000 + self._num_clients, self._context)
        self._stack.callback(connection.close)
        assert isinstance(connection.call(message, 0, PATIENCE_S), m.Registered)
        self._stack.callback(self._unregister, connection)

    @staticmethod
    def _unregister(connection: Connection) -> None:
        assert connection.call(m.Unregister(), connection.boot_id, PATIENCE_S) == m.Done(1)


@contextmanager
def registrations(server: RunningServer) -> Iterator[Registrations]:
    with ExitStack() as stack:
        yield Registrations(server, stack)


Ask = Callable[..., list[Finding]]


@pytest.fixture
def registered(server: RunningServer) -> Iterator[Registrations]:
    with registrations(server) as found:
        yield found


@pytest.fixture
def ask(server: RunningServer) -> Ask:
    """`ask(model, *flags, **keys)`: of a vLLM that is started so."""

    def findings(model: str, *flags: str, version: str = "0.32.0+cpu", **keys: str) -> list[Finding]:
        extra = {f"lmcache.mp.{name}": value for name, value in {"server_urls": server.zmq_url, **keys}.items()}
        words = ["vllm", "serve", model, "--kv-transfer-config", transfer_of(SERVER, extra)]
        words += ["--block-size", str(BLOCK_SIZE), *flags]
        return findings_of(words, host=host_of(version), http_url=f"http://127.0.0.1:{server.http_port}")

    return findings


def difference(found: list[Finding]) -> str:
    """What is told after `with`, of the one engine."""
    return only(found, "warning", " with ").what.partition(" with ")[2]


def test_engines_that_are_alike(registered: Registrations, ask: Ask, tmp_path: pathlib.Path) -> None:
    model = write_model(tmp_path / "model")
    registered.add(model, facts_of(model))
    registered.add(model, facts_of(model))
    assert ask(model) == ask(model, version="0.32.0+cpu.1") == []


@pytest.mark.parametrize(
    ("theirs", "flags", "expected"),
    [
        ({}, ("--revision", "v2"), "revision none (not v2)"),
        ({"revision": "v1"}, (), "revision v1 (not none)"),
        (
            {"revision": "v1"},
            ("--revision", "v2", "--code-revision=c"),
            "revision v1 (not v2), code_revision none (not c)",
        ),
        ({"revision": "v1"}, ("--revision=v1",), ""),
        ({}, ("-q", "fp8"), "quantization none (not fp8)"),
        ({"quantization": "fp8"}, (), "quantization fp8 (not none)"),
        ({"quantization": "awq_marlin"}, ("--quantization", "awq"), ""),
    ],
)  # fmt: skip
def test_facts_that_differ(
    registered: Registrations, ask: Ask, tmp_path: pathlib.Path,
    theirs: dict[str, str], flags: tuple[str, ...], expected: str,
) -> None:  # fmt: skip
    model = write_model(tmp_path / "model")
    registered.add(model, facts_of(model, **theirs))
    found = ask(model, *flags)
    assert difference(found) == expected if expected else found == []


@pytest.mark.parametrize("place", ["config", "config of the text", "file"])
def test_checkpoint_that_tells_its_own_quantization(
    registered: Registrations, ask: Ask, tmp_path: pathlib.Path, place: str
) -> None:
    own: dict[str, object] = {"quantization_config": {"quant_method": "fp8"}}
    config = {"config": own, "config of the text": {"text_config": own}, "file": {}}[place]
    model = write_model(tmp_path / "model", **config)
    if place == "file":
        (tmp_path / "model" / "hf_quant_config.json").write_text("{}")
    registered.add(model, facts_of(model, quantization="fp8"))
    assert ask(model) == []
    assert difference(ask(model, "-q", "awq")) == "quantization fp8 (not awq)"


def test_tensor_and_pipeline_ranks_are_told_apart(registered: Registrations, ask: Ask, tmp_path: pathlib.Path) -> None:
    model = write_model(tmp_path / "model")
    registered.add(model, facts_of(model, tensor=2))
    assert ask(model, "-tp", "2") == []
    found = only(ask(model, "-pp", "2"), "warning", "serve")
    assert found.what == (
        f"instances 0, 1 serve {model} with tensor_parallel_size 2 (not 1), pipeline_parallel_size 1 (not 2)"
    )
    assert found.why == "engines that differ in these share nothing"


def test_weights_that_were_replaced(registered: Registrations, ask: Ask, tmp_path: pathlib.Path) -> None:
    model = write_model(tmp_path / "model")
    registered.add(model, facts_of(model))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"others!")
    assert difference(ask(model)) == "other weights"
    assert difference(ask(model, model_version="mine")) == "other weights"


def test_weights_that_were_named(registered: Registrations, ask: Ask, tmp_path: pathlib.Path) -> None:
    model = write_model(tmp_path / "model")
    registered.add(model, {**facts_of(model), "weights": {"model_version": "mine"}})
    assert ask(model, model_version="mine") == []
    assert difference(ask(model)) == "other weights"


def test_model_that_is_not_on_this_host(registered: Registrations, ask: Ask, tmp_path: pathlib.Path) -> None:
    """Nothing is said of what cannot be read."""
    model = write_model(tmp_path / "model")
    registered.add("org/model-of-nowhere", facts_of(model, quantization="fp8"))
    assert ask("org/model-of-nowhere") == []
    assert difference(ask("org/model-of-nowhere", "--revision", "v2")) == "revision none (not v2)"


def test_another_vllm(registered: Registrations, ask: Ask, tmp_path: pathlib.Path) -> None:
    model = write_model(tmp_path / "model")
    registered.add(model, {**facts_of(model), "vllm": "0.31.0"})
    assert difference(ask(model)) == "vLLM 0.31.0 (not 0.32.0)"
