"""What the in-process mode takes from a vLLM that finds nothing in the cache: time inside its hooks, by step.

Its saves are part of that: they have left vLLM's pages before a hook returns. The internal API is served
meanwhile, on sockets, and nobody calls it. Once more with chunk statistics, which are held to no target.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

from benchmarks.common import Row, children_kept_quiet, print_rows
from benchmarks.hook_times import p99_row, random_prompts, share_rows, start_timing, times_of
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_models import SMALL_LLAMA
from lmcache.testing.vllm_spec import EngineSpec, embedded_connector

PROMPT_TOKENS = 4096
PROMPTS = 12
DECODED_TOKENS = 400
POOL_GIB = 1.0


def main(
    model: dict[str, Any] | None = None, prompt_tokens: int = PROMPT_TOKENS, prompts: int = PROMPTS,
    decoded_tokens: int = DECODED_TOKENS,
) -> list[Row]:  # fmt: skip
    model = model or SMALL_LLAMA
    rows: list[Row] = []
    with children_kept_quiet():
        for counts_chunks in (False, True):
            with tempfile.TemporaryDirectory(prefix="lmcache-bench-") as folder:
                engine = _start(pathlib.Path(folder), model, prompt_tokens + 256, counts_chunks)
                try:
                    rows += _rows(engine, model, prompt_tokens, prompts, decoded_tokens, counts_chunks)
                    _check(engine, pathlib.Path(folder))
                finally:
                    engine.close()
    print_rows(f"our hooks in the in-process mode, {prompts} prompts that miss", rows)
    return rows


def _start(folder: pathlib.Path, model: dict[str, Any], max_tokens: int, counts_chunks: bool) -> EngineProcess:
    connector = embedded_connector(
        max_local_cpu_size=POOL_GIB,
        internal_api_server_enabled=True,
        internal_api_server_socket_path_prefix=str(folder / "api"),
        enable_chunk_statistics=counts_chunks,
        chunk_statistics_auto_start_statistics=counts_chunks,
    )
    return EngineProcess(EngineSpec(folder / "model", model, connector, options={"max_model_len": max_tokens}))


def _check(engine: EngineProcess, folder: pathlib.Path) -> None:
    """It does what it was asked for."""
    ignored = [line for line in engine.call("log_lines") if "no effect" in line]
    if ignored or not list(folder.glob("api*")):
        raise RuntimeError(f"this is not what should be measured: {ignored or 'no internal API is served'}")


def _rows(
    engine: EngineProcess, model: dict[str, Any], prompt_tokens: int, prompts: int, decoded_tokens: int,
    counts_chunks: bool,
) -> list[Row]:  # fmt: skip
    suffix = ", chunk statistics on" if counts_chunks else ""
    first, to_decode, *drawn = random_prompts(model, prompt_tokens, prompts + 2)
    start_timing(engine, first)
    prefills = times_of(engine, drawn, 1)
    decodes = times_of(engine, [to_decode[:200]], decoded_tokens)
    return [
        *share_rows(f"prefill of {prompt_tokens} tokens{suffix}", prefills, is_judged=not counts_chunks),
        *share_rows(f"decode{suffix}", decodes, is_judged=not counts_chunks),
        p99_row(f"decode{suffix}", decodes),
    ]


if __name__ == "__main__":
    main()
