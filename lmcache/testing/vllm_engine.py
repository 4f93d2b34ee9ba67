"""A real vLLM on CPU in a child process, driven from a test: one engine per configuration.

Children are forked from a server process that has imported vLLM once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

# 4 layers, 2 KiB of KV a token: for tests.
TINY_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2000,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}

# 12 layers, 12 KiB of KV a token: for the demo and the benchmarks.
SMALL_LLAMA: dict[str, Any] = {
    **TINY_LLAMA,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "2",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True)
class EngineSpec:
    """One engine. `model` is a config.json; weights are made on the spot from `seed`."""

    folder: pathlib.Path
    model: dict[str, Any] = field(default_factory=lambda: dict(TINY_LLAMA))
    connector: dict[str, Any] | None = None
    kvcache_gib: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    multiprocess: bool = False


@dataclass(frozen=True)
class Output:
    """`logprobs`: per generated token, the chosen token's and the top ones' logprobs."""

    token_ids: list[int]
    logprobs: list[dict[int, float]]
    num_cached_tokens: int
    finish_reason: str | None
    kv_transfer_params: dict[str, Any] | None = None


def mp_connector(port: int, **extra: Any) -> dict[str, Any]:
    """The kv-transfer-config a user would write."""
    settings = {"lmcache.mp.port": port, "lmcache.mp.heartbeat_interval": 0.5}
    settings.update({f"lmcache.mp.{key}": value for key, value in extra.items()})
    return {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both", "kv_connector_extra_config": settings}


def write_model(folder: pathlib.Path, config: dict[str, Any]) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class EngineProcess:
    """The parent's handle. Every call may raise RuntimeError with the child's traceback."""

    def __init__(self, spec: EngineSpec, timeout_s: float = 300.0) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lmcache.testing.vllm_preload"])
        self._pipe, child = context.Pipe()
        self._timeout_s = timeout_s
        self.process = context.Process(target=_serve, args=(spec, child), daemon=not spec.multiprocess)
        self.process.start()
        child.close()
        self._answer()

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        self._pipe.send((name, arguments, options))
        return self._answer()

    def _answer(self) -> Any:
        if not self._pipe.poll(self._timeout_s):
            self.kill()
            raise RuntimeError("the engine process did not answer")
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the engine process died with {self.process.exitcode}") from None
        if kind == "error":
            raise RuntimeError(value)
        return value

    def generate(self, prompts: list[list[int]], max_tokens: int = 8, **options: Any) -> list[Output]:
        return self.call("generate", prompts, max_tokens, **options)

    def forget(self) -> None:
        """Make vLLM forget its own prefix cache, so that only the connector can answer."""
        self.call("forget")

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def close(self) -> None:
        if self.process.is_alive():
            try:
                self.call("close")
            except (RuntimeError, OSError):
                self.process.kill()
            self.process.join(30)
        if self.process.is_alive():
            self.kill()
        self._pipe.close()


def _serve(spec: EngineSpec, pipe: Connection) -> None:
    try:
        engine = EngineChild(spec)
    except Exception:
        pipe.send(("error", traceback.format_exc()))
        return
    pipe.send(("ok", None))
    while True:
        try:
            name, arguments, options = pipe.recv()
        except EOFError:
            break
        if name == "close":
            engine.close()
            pipe.send(("ok", None))
            break
        try:
            pipe.send(("ok", getattr(engine, name)(*arguments, **options)))
        except Exception:
            pipe.send(("error", traceback.format_exc()))
    os._exit(0)


class EngineChild:
    """Runs inside the child process; its public methods are what `call` can name."""

    def __init__(self, spec: EngineSpec) -> None:
        os.environ.update(ENVIRONMENT)
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(spec.kvcache_gib)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if spec.multiprocess else "0"
        os.environ.update(spec.environment)
        from vllm import LLM
        from vllm.config import KVTransferConfig

        options: dict[str, Any] = {
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "max_model_len": 8192,
            "disable_log_stats": False,
            "seed": 0,
        }
        options.update(spec.options)
        if spec.connector is not None:
            options["kv_transfer_config"] = KVTransferConfig(**spec.connector)
        self.llm = LLM(model=str(write_model(spec.folder, spec.model)), **options)

    @property
    def _scheduler(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    def generate(
        self,
        prompts: list[list[int]],
        max_tokens: int = 8,
        salts: list[str] | None = None,
        lora: tuple[str, int, str] | None = None,
        sampling: dict[str, Any] | None = None,
    ) -> list[Output]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        inputs = [
            {"prompt_token_ids": prompt, **({"cache_salt": salts[i]} if salts and salts[i] else {})}
            for i, prompt in enumerate(prompts)
        ]
        settings: dict[str, Any] = {
            "temperature": 0.0, "max_tokens": max_tokens, "logprobs": 3, "ignore_eos": True, "detokenize": False,
        }  # fmt: skip
        settings.update(sampling or {})
        outputs = self.llm.generate(
            inputs,
            SamplingParams(**settings),
            use_tqdm=False,
            lora_request=LoRARequest(*lora) if lora else None,
        )
        return [_output(output) for output in outputs]

    def time_to_first_token(self, prompt: list[int]) -> tuple[float, int]:
        """Seconds from the request to its first token, and how many tokens were cached."""
        import time

        begun_s = time.perf_counter()
        (output,) = self.generate([prompt], max_tokens=1, sampling={"logprobs": None})
        return time.perf_counter() - begun_s, output.num_cached_tokens

    def forget(self) -> None:
        for _ in range(200):
            if self.llm.reset_prefix_cache():
                return
            self._step()
        raise RuntimeError("blocks are still held")

    def _step(self) -> None:
        """One engine step even without requests, so that saves report and let their blocks go."""
        import time

        time.sleep(0.01)
        self.llm.llm_engine.engine_core.engine_core.step()

    def reset_with_connector(self) -> bool:
        return bool(self.llm.llm_engine.engine_core.engine_core.reset_prefix_cache(reset_connector=True))

    def settle(self) -> None:
        """Step until no save is under way."""
        for _ in range(500):
            if not self._scheduler.connector.has_pending_push_work():
                return
            self._step()
        raise RuntimeError("a save never ended")

    def connector_state(self) -> dict[str, Any]:
        connector = self._scheduler.connector
        adapter = connector._scheduler
        pool = self._scheduler.kv_cache_manager.block_pool
        return {
            "class": f"{type(connector).__module__}.{type(connector).__qualname__}",
            "is_joined": adapter is not None and adapter._current() is not None,
            "num_trackers": len(adapter._trackers) if adapter is not None else 0,
            "num_open_saves": adapter.saves.num_open if adapter is not None else 0,
            "num_free_blocks": pool.get_num_free_blocks(),
            "num_blocks": pool.num_gpu_blocks,
            "policy": self._scheduler.vllm_config.kv_transfer_config.kv_load_failure_policy,
        }

    def wait_until_joined(self, timeout_s: float = 20.0) -> bool:
        import time

        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.connector_state()["is_joined"]:
                return True
            time.sleep(0.02)
        return False

    def run(self, source: str, **values: Any) -> Any:
        """Run Python inside the engine process; the value of `result` comes back."""
        scope = {"llm": self.llm, "engine": self, "scheduler": self._scheduler, "result": None, **values}
        exec(source, scope)
        return scope["result"]

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


def _output(output: Any) -> Output:
    completion = output.outputs[0]
    logprobs = [
        {token: float(entry.logprob) for token, entry in position.items()} for position in completion.logprobs or []
    ]
    return Output(
        list(completion.token_ids),
        logprobs,
        output.num_cached_tokens or 0,
        completion.finish_reason,
        getattr(output, "kv_transfer_params", None),
    )
