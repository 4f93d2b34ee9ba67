"""Two real engines with the bare connector: asynchronous loads with small blocks, synchronous with large ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import EngineSpec, Output

MODES = {
    "async": {"block_size": 32, "num_gpu_blocks_override": 96, "max_model_len": 2048},
    "sync": {"num_gpu_blocks_override": 24, "max_model_len": 2048},
}
POLICIES = {"async": "recompute", "sync": "fail"}


class BareEngine:
    """An engine and what the tests ask of it."""

    def __init__(self, mode: str, process: EngineProcess) -> None:
        self.mode = mode
        self.is_async = mode == "async"
        self.block_size = int(MODES[mode].get("block_size", 128))
        self._process = process
        self._num_salts = 0

    def generate(self, prompt: list[int], max_tokens: int = 6, **options: Any) -> Output:
        return self._process.generate([prompt], max_tokens, **options)[0]

    def inside(self, function: str, **arguments: Any) -> Any:
        """Call a function of `in_engine` in the engine's process."""
        source = f"from tests.vllm_bare import in_engine; result = in_engine.{function}(engine, **arguments)"
        return self._process.call("run", source, arguments=arguments)

    def state(self) -> dict[str, int]:
        return self.inside("state")

    def forget(self) -> None:
        self._process.call("settle")
        self._process.forget()

    def store(self, prompt: list[int]) -> None:
        """Compute a prompt, and have vLLM forget it: only the connector still has it."""
        self.generate(prompt, 1)
        self.forget()

    def own_hit(self, prompt: list[int], num_cached_tokens: int, max_tokens: int = 6) -> Output:
        """The oracle: vLLM's own prefix hit with exactly so many cached tokens, under a salt nobody used."""
        self._num_salts += 1
        salts = [f"oracle-{self._num_salts}"]
        self.generate(prompt[:num_cached_tokens], 1, salts=salts)
        output = self.generate(prompt, max_tokens, salts=salts)
        assert output.num_cached_tokens == num_cached_tokens
        return output


@pytest.fixture(scope="package", params=list(MODES))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareEngine]:
    mode = request.param
    connector = {
        "kv_connector": "BareConnector",
        "kv_connector_module_path": "benchmarks.bare_connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"bare.load_mode": mode},
        "kv_load_failure_policy": POLICIES[mode],
    }
    folder = tmp_path_factory.mktemp("bare")
    process = EngineProcess(EngineSpec(folder, connector=connector, options=MODES[mode]))
    try:
        yield BareEngine(mode, process)
    finally:
        process.close()


@pytest.fixture(autouse=True)
def nothing_held(engine: BareEngine) -> Iterator[None]:
    """After every test all blocks are back, no save is open, no request is remembered."""
    yield
    engine.forget()
    state = engine.state()
    del state["chunks"]
    assert not any(state.values()), state


@pytest.fixture
def make_prompt(request: pytest.FixtureRequest) -> Callable[..., list[int]]:
    """Random token ids, the same ones for the same test on every run."""
    rng = random.Random(request.node.name)
    return lambda num_tokens, start=(): [*start, *(rng.randrange(2000) for _ in range(num_tokens - len(start)))]
