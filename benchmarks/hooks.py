"""What our connector takes from an engine that finds nothing in the server's cache: time inside its hooks, by step."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

from benchmarks.common import Row, children_kept_quiet, print_rows, server
from benchmarks.hook_times import p99_row, random_prompts, share_rows, start_timing, times_of
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_models import SMALL_LLAMA
from lmcache.testing.vllm_spec import EngineSpec, mp_connector

PROMPT_TOKENS = 4096
PROMPTS = 12
SHORT_TOKENS, SHORT_PROMPTS = 512, 200
DECODED_TOKENS = 400
P99_MS_MAX = 1.0


def main(
    model: dict[str, Any] | None = None, prompt_tokens: int = PROMPT_TOKENS, prompts: int = PROMPTS,
    decoded_tokens: int = DECODED_TOKENS, short_prompts: int = SHORT_PROMPTS,
) -> list[Row]:  # fmt: skip
    model = model or SMALL_LLAMA
    with (
        tempfile.TemporaryDirectory(prefix="lmcache-bench-") as folder,
        children_kept_quiet(),
        server(1.0) as running,
    ):
        options = {"max_model_len": prompt_tokens + 256}
        engine = EngineProcess(EngineSpec(pathlib.Path(folder), model, mp_connector(running.port), options=options))
        try:
            if not engine.call("wait_until_joined"):
                raise RuntimeError("vLLM did not join the server")
            first, to_decode, *drawn = random_prompts(model, prompt_tokens, prompts + 2)
            start_timing(engine, first)
            rows = share_rows(f"prefill of {prompt_tokens} tokens", times_of(engine, drawn, 1))
            times = times_of(engine, [to_decode[:200]], decoded_tokens)
            rows += [*share_rows("decode", times), p99_row("decode", times, P99_MS_MAX)]
            # A hook that is called once a prompt: only many prompts have a 99th percentile.
            short = times_of(engine, random_prompts(model, SHORT_TOKENS, short_prompts, seed=1), 1)
            rows.append(p99_row(f"{short_prompts} prompts of {SHORT_TOKENS} tokens", short, P99_MS_MAX))
        finally:
            engine.close()
    print_rows(f"our hooks, {prompts} prompts that miss", rows)
    return rows


if __name__ == "__main__":
    main()
