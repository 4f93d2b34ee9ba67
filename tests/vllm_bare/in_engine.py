"""What these tests do inside the engine's process, where scheduler, connector and block pool are at hand."""

from __future__ import annotations

import threading
import time
from typing import Any

from vllm import SamplingParams
from vllm.distributed.kv_transfer import get_kv_transfer_group

_STEPS_MAX = 5000


def worker_side() -> Any:
    return get_kv_transfer_group()


def num_blocks_in_use(engine: Any) -> int:
    """Blocks somebody holds a reference on, the null block left out."""
    pool = engine._scheduler.kv_cache_manager.block_pool
    return pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()


def state(engine: Any) -> dict[str, int]:
    scheduler = engine._scheduler
    connector = scheduler.connector
    tables = (connector._requests, connector._local, connector._handed, connector._failed, connector._job_hashes)
    return {
        "blocks_in_use": num_blocks_in_use(engine),
        "open_saves": connector._saves.num_open,
        "held_blocks": connector._saves._num_held,
        "remembered_requests": sum(len(table) for table in tables),
        "chunks": len(connector.memory),
    }


def add(engine: Any, request_id: str, prompt: list[int], max_tokens: int = 4) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
    engine.llm.llm_engine.add_request(request_id, {"prompt_token_ids": prompt}, sampling)


def step(engine: Any, times: int = 1) -> list[Any]:
    return [output for _ in range(times) for output in engine.llm.llm_engine.step()]


def drain(engine: Any) -> dict[str, Any]:
    """Step until no request and no save is left; the finished outputs by request."""
    done = {}
    for _ in range(_STEPS_MAX):
        if not engine._scheduler.has_requests():
            return done
        done.update({output.request_id: output for output in step(engine) if output.finished})
    raise RuntimeError("requests or saves never end")


def copies_held_back(engine: Any, kind: str) -> tuple[threading.Event, Any]:
    """Make the copying thread wait before its next copies of this kind until the event is set."""
    worker, released = worker_side(), threading.Event()
    original = getattr(worker, f"_{kind}")

    def wait_then_copy(*arguments: Any) -> Any:
        released.wait()
        return original(*arguments)

    setattr(worker, f"_{kind}", wait_then_copy)
    return released, lambda: setattr(worker, f"_{kind}", original)


def store_of_a_finished_request(engine: Any, prompt: list[int]) -> dict[str, Any]:
    """Blocks in use while the save of a request that is long over is held back, and after it."""
    released, restore = copies_held_back(engine, "store")
    add(engine, "saved", prompt, 1)
    while not any(output.finished for output in step(engine)):
        pass
    during = num_blocks_in_use(engine)
    can_reset = engine.llm.reset_prefix_cache()
    released.set()
    drain(engine)
    restore()
    return {"during": during, "after": num_blocks_in_use(engine), "could_reset": can_reset}


def abort_during_load(engine: Any, prompt: list[int]) -> dict[str, Any]:
    released, restore = copies_held_back(engine, "load")
    add(engine, "aborted", prompt)
    step(engine, 5)
    (request,) = engine._scheduler.requests.values()
    status = request.status.name
    engine.llm.llm_engine.abort_request(["aborted"])
    step(engine, 5)
    during = num_blocks_in_use(engine)
    released.set()
    deadline = time.monotonic() + 10
    while num_blocks_in_use(engine) and time.monotonic() < deadline:
        engine.step()
    restore()
    return {"status": status, "during": during, "after": num_blocks_in_use(engine)}


def reset_during_load(engine: Any, prompt: list[int]) -> list[int]:
    """Forget everything while a load waits; the tokens of the request that waited."""
    released, restore = copies_held_back(engine, "load")
    add(engine, "reset", prompt)
    step(engine, 3)
    engine._scheduler.connector.reset_cache()
    released.set()
    output = drain(engine)["reset"]
    restore()
    return list(output.outputs[0].token_ids)


def count_preemptions(engine: Any, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
    scheduler, count = engine._scheduler, 0
    original = scheduler._preempt_request

    def counted(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        original(*arguments, **options)

    scheduler._preempt_request = counted
    for number, prompt in enumerate(prompts):
        add(engine, f"crowded-{number}", prompt, max_tokens)
    outputs = drain(engine)
    scheduler._preempt_request = original
    return {"preemptions": count, "lengths": sorted(len(output.outputs[0].token_ids) for output in outputs.values())}


def generate_trimmed(engine: Any, prompt: list[int], max_tokens: int, num_trimmed: int) -> Any:
    """As if vLLM took less than was offered."""
    connector = engine._scheduler.connector
    original = connector.get_num_new_matched_tokens

    def trimmed(request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        offered, is_async = original(request, num_computed_tokens)
        return offered - num_trimmed, is_async

    connector.get_num_new_matched_tokens = trimmed
    try:
        return engine.generate([prompt], max_tokens)[0]
    finally:
        connector.get_num_new_matched_tokens = original


def generate_with_failures(engine: Any, prompt: list[int], num_failures: int, recomputes: bool) -> list[Any]:
    """One request whose loads fail so often, under a policy; then the same without failures."""
    scheduler = engine._scheduler
    configured, scheduler.recompute_kv_load_failures = scheduler.recompute_kv_load_failures, recomputes
    worker_side()._fail_loads = num_failures
    try:
        failing = engine.generate([prompt], 4)[0]
    finally:
        worker_side()._fail_loads = 0
        scheduler.recompute_kv_load_failures = configured
    engine.settle()
    engine.forget()
    return [failing, engine.generate([prompt], 4)[0]]
