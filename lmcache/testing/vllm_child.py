"""The engine process that `vllm_engine.EngineProcess` drives: a real vLLM, called by name over a pipe."""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from lmcache.testing.vllm_models import has_weights, write_model, write_weights
from lmcache.testing.vllm_spec import ENVIRONMENT, EngineSpec, Gate, Output

# By the clock, not in steps: on a crowded machine a step may be over long before a copying thread had its turn. Less
# than `EngineProcess` waits for an answer.
_PATIENCE_S = 240.0


def serve(spec: EngineSpec, pipe: Connection) -> None:
    """The child's life: build the engine, obey until told to close or the parent is gone."""
    # Ctrl-C reaches all processes of a terminal; when this one ends is its parent's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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


class _LogLines(logging.Handler):
    """What our package logged: level and text."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


class EngineChild:
    """Its public methods are what `EngineProcess.call` can name."""

    def __init__(self, spec: EngineSpec) -> None:
        self._is_multiprocess = spec.multiprocess
        os.environ.update(ENVIRONMENT)
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(spec.kvcache_gib)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if spec.multiprocess else "0"
        os.environ.update(spec.environment)
        _limit_threads(int(os.environ["OMP_NUM_THREADS"]))
        self._log = _LogLines()
        from lmcache.logging import init_logger

        init_logger("lmcache").addHandler(self._log)
        self._finished: dict[str, Output] = {}
        self.llm = self._make(spec)

    def _make(self, spec: EngineSpec) -> Any:
        from vllm import LLM
        from vllm.config import KVTransferConfig

        write_model(spec.folder, spec.model)
        is_real = has_weights(spec.model) and spec.options.get("load_format") != "dummy"
        if is_real:
            write_weights(spec.folder, spec.model, spec.weights_seed)
        options: dict[str, Any] = {
            "load_format": "auto" if is_real else "dummy",
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "max_model_len": 8192,
            "disable_log_stats": False,
            "seed": 0,
        }
        options.update(spec.options)
        if spec.connector is not None:
            options["kv_transfer_config"] = KVTransferConfig(**spec.connector)
        return LLM(model=str(spec.folder), **options)

    @property
    def _core(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core

    @property
    def _scheduler(self) -> Any:
        return self._core.scheduler

    # Requests

    def generate(
        self,
        prompts: list[list[int]],
        max_tokens: int = 8,
        salts: list[str] | None = None,
        lora: tuple[str, int, str] | None = None,
        sampling: dict[str, Any] | None = None,
    ) -> list[Output]:
        from vllm.lora.request import LoRARequest

        outputs = self.llm.generate(
            [_prompt(prompt, salts[i] if salts else "") for i, prompt in enumerate(prompts)],
            _sampling(max_tokens, sampling),
            use_tqdm=False,
            lora_request=LoRARequest(*lora) if lora else None,
        )
        return [_output(output) for output in outputs]

    def add(self, request_id: str, prompt: list[int], max_tokens: int = 8, salt: str = "") -> str:
        """Add a request without stepping; returns vLLM's own id for it."""
        return str(self.llm.llm_engine.add_request(request_id, _prompt(prompt, salt), _sampling(max_tokens, None)))

    def abort(self, *request_ids: str) -> None:
        self.llm.llm_engine.abort_request(list(request_ids))

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            if not self.llm.llm_engine.has_unfinished_requests():
                self._idle_step()
                continue
            for output in self.llm.llm_engine.step():
                if output.finished:
                    self._finished[output.request_id] = _output(output)

    def finish(self) -> dict[str, Output]:
        """Step until every request has ended; what ended since the last call, by id."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.llm.llm_engine.has_unfinished_requests():
            if time.monotonic() > deadline:
                raise RuntimeError("requests never ended")
            self.step()
        finished, self._finished = self._finished, {}
        return finished

    def pages(self, prompt: list[int], salt: str = "") -> tuple[int, Any]:
        """How many tokens were cached, and the KV of a prompt's whole blocks as float `[layers, blocks, values]`."""
        import torch
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        request_id = self.add("pages", prompt, 2, salt)
        request = self._scheduler.requests[request_id]
        while not request.num_output_tokens:
            self.step()
        num_blocks = len(prompt) // self._scheduler.block_size
        (block_ids,) = self._scheduler.kv_cache_manager.get_block_ids(request_id)
        layers = get_kv_transfer_group()._worker._layers
        pages = torch.stack([layer[block_ids[:num_blocks]].float().flatten(1) for layer in layers])
        return self.finish()["pages"].num_cached_tokens, pages.numpy()

    def time_to_first_token(self, prompt: list[int]) -> tuple[float, int]:
        """Seconds from the request to its first token, and how many tokens were cached."""
        begun_s = time.perf_counter()
        (output,) = self.generate([prompt], max_tokens=1, sampling={"logprobs": None})
        return time.perf_counter() - begun_s, output.num_cached_tokens

    # The engine

    def forget(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not self.llm.reset_prefix_cache():
            if time.monotonic() > deadline:
                raise RuntimeError("blocks are still held")
            self._idle_step()

    def _idle_step(self) -> None:
        """One engine step even without requests, so that saves report and let their blocks go."""
        time.sleep(0.01)
        if not self._is_multiprocess:  # else the engine's own process steps by itself
            self.llm.llm_engine.step()

    def settle(self) -> None:
        """Step until no save is under way and no request holds anything."""
        if self._is_multiprocess:
            raise RuntimeError("this engine steps by itself: `forget` succeeds once its saves have ended")
        deadline = time.monotonic() + _PATIENCE_S
        while self._scheduler.connector.has_pending_push_work() or self._scheduler.requests:
            if time.monotonic() > deadline:
                raise RuntimeError("a save never ended")
            self._idle_step()

    def reset_with_connector(self) -> bool:
        return bool(self._core.reset_prefix_cache(reset_connector=True))

    def connector_state(self) -> dict[str, Any]:
        connector = self._scheduler.connector
        adapter = getattr(connector, "_scheduler", None)
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

    def wait_until_joined(self) -> bool:
        """Registered, and connected for the first lookup, which waits for nobody."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            if self.connector_state()["is_joined"] and self._is_connected():
                return True
            time.sleep(0.02)
        return False

    def _is_connected(self) -> bool:
        lookups = self._scheduler.connector._scheduler._lookups
        lookups.prepare()
        return lookups._connection is not None and bool(lookups._connection.is_connected)

    def log_lines(self, level: str = "WARNING") -> list[str]:
        """What our package logged at this level since the last call for it."""
        found = [text for name, text in self._log.lines if name == level]
        self._log.lines = [line for line in self._log.lines if line[0] != level]
        return found

    def watch(self, gate: Gate | None) -> None:
        """Hold this engine's transfers at a step; None: no more."""
        from lmcache.telemetry.steps import NO_STEPS

        self._transfer._steps = gate or NO_STEPS

    @property
    def _transfer(self) -> Any:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        return get_kv_transfer_group()._worker._transfer

    def run(self, source: str, **values: Any) -> Any:
        """Run Python inside the engine process; the value of `result` comes back."""
        scheduler = None if self._is_multiprocess else self._scheduler
        scope = {"llm": self.llm, "engine": self, "scheduler": scheduler, "result": None, **values}
        exec(source, scope)
        return scope["result"]

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


def _limit_threads(num_threads: int) -> None:
    """The variable alone says nothing any more to a process that was forked with torch in it."""
    import torch

    torch.set_num_threads(num_threads)


def _prompt(tokens: list[int], salt: str) -> dict[str, Any]:
    return {"prompt_token_ids": tokens, **({"cache_salt": salt} if salt else {})}


def _sampling(max_tokens: int, more: dict[str, Any] | None) -> Any:
    from vllm import SamplingParams

    settings: dict[str, Any] = {
        "temperature": 0.0, "max_tokens": max_tokens, "logprobs": 3, "ignore_eos": True, "detokenize": False,
    }  # fmt: skip
    settings.update(more or {})
    return SamplingParams(**settings)


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
