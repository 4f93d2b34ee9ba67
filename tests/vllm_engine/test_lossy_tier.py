"""A real vLLM over a tier that keeps KV only roughly: its own prefix cache holds what it loaded from there, and what
it holds is not stored as if vLLM had computed it."""

from __future__ import annotations

import pathlib

from lmcache.testing.l2_fs import FSBackend
from lmcache.testing.ports import free_port
from tests.vllm_engine.test_l2_hits import NUM_CHUNKS, PROMPT, StartEngine, ask, join, start_engine
from tests.vllm_engine.tiers import Tier, tier_server
from tests.vllm_serve.serving import wait_until
from tests.vllm_shared.prompts import CHUNK

__all__ = ["start_engine"]


def test_what_vllm_holds_from_a_lossy_tier_is_not_stored(start_engine: StartEngine, tmp_path: pathlib.Path) -> None:
    backend = FSBackend(tmp_path)
    tier = Tier("int8", {"type": "fs", "base_path": str(backend.base), "serde": [{"type": "int8"}]}, backend)
    port = free_port()
    with tier_server(port, tier) as server, start_engine(port) as engine:
        join(engine, server)
        assert ask(engine, PROMPT[: NUM_CHUNKS * CHUNK]).num_cached_tokens == 0
        server.wait_until_stored()
        keys = server.l1_keys()
        assert server.http.post("/clear-cache").status_code == 200
        assert ask(engine).num_cached_tokens == NUM_CHUNKS * CHUNK
        assert server.metric("lmcache_mp_l2_lossy_loads_chunks_total") == NUM_CHUNKS

        wait_until(lambda: server.l1_keys() == [], "what was brought back goes with its reader")
        server.delete(keys)
        (held,) = engine.generate([PROMPT], 4)
        assert held.num_cached_tokens >= NUM_CHUNKS * CHUNK, "vLLM has it still"
        engine.settle()
        server.wait_until_stored()
        assert (server.l1_keys(), server.listed()) == ([], [])

        assert ask(engine).num_cached_tokens == 0, "vLLM forgot it and computes it anew"
        server.wait_until_stored()
        assert sorted(map(str, server.l1_keys())) == sorted(map(str, keys))
        assert len(server.listed()) == NUM_CHUNKS
