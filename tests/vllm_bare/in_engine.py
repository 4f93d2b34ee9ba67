"""What these tests do inside the engine's process, where scheduler, connector and block pool are at hand."""

from __future__ import annotations

import threading
import time
from typing import Any

from vllm import SamplingParams
from vllm.distributed.kv_transfer import get_kv_transfer_group

# By the clock, not in steps: those without work are over long before a copying thread had its turn. Less than
# `EngineProcess` waits for an answer.
_PATIENCE_S = 240.0


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
    deadline = time.monotonic() + _PATIENCE_S
    while engine._scheduler.has_requests():
        if time.monotonic() > deadline:
            raise RuntimeError("requests or saves never end")
        done.update({output.request_id: output for output in step(engine) if output.finished})
    return done


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
    deadline = time.monotonic() + _PATIENCE_S
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


def add_and_decode(engine: Any, request_id: str, prompt: list[int], max_tokens: int) -> None:
    """Until it only decodes: nothing of it is loaded or saved any more."""
    add(engine, request_id, prompt, max_tokens)
    (request,) = engine._scheduler.requests.values()
    connector, deadline = engine._scheduler.connector, time.monotonic() + _PATIENCE_S
    while not request.num_output_tokens or connector.has_pending_push_work():
        step(engine)
        # Not in steps: it shall not decode to its end meanwhile.
        while connector.has_pending_push_work() and not worker_side()._done_stores:
            if time.monotonic() > deadline:
                raise RuntimeError("a save never ends")
            time.sleep(0.001)


def reset_while_decoding(engine: Any, prompt: list[int], max_tokens: int, preempts: bool) -> dict[str, Any]:
    """With `preempts`, requests are set back and resumed; else they go on with what they have."""
    add_and_decode(engine, "running", prompt, max_tokens)
    done = engine._scheduler.reset_prefix_cache(reset_running_requests=preempts, reset_connector=True)
    (request,) = engine._scheduler.requests.values()
    num_computed, num_chunks = request.num_computed_tokens, state(engine)["chunks"]
    output = drain(engine)["running"]
    return {
        "did_reset": done,
        "num_computed": num_computed,
        "chunks": num_chunks,
        "num_tokens": len(output.outputs[0].token_ids),
    }


def sleep_and_wake(engine: Any, level: int, weights: str) -> None:
    """With other weights loaded meanwhile. vLLM on CPU takes the calls and keeps its memory as it is."""
    engine.llm.sleep(level)
    if not engine.llm.llm_engine.is_sleeping():
        raise RuntimeError("it does not sleep")
    engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": weights})
    engine.llm.wake_up()
    if engine.llm.llm_engine.is_sleeping():
        raise RuntimeError("it does not wake")


def ask_while_paused(engine: Any, prompt: list[int], max_tokens: int) -> Any:
    """A request that comes while the scheduler pauses is answered once it goes on."""
    from lmcache.testing.vllm_child import _output

    engine.llm.sleep(0)
    add(engine, "paused", prompt, max_tokens)
    if any(output.outputs[0].token_ids for output in step(engine, 5)):
        raise RuntimeError("the scheduler does not pause")
    engine.llm.wake_up(tags=["scheduling"])
    return _output(drain(engine)["paused"])
