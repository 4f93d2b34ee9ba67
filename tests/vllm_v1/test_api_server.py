"""A port that somebody has costs vLLM one warning; who may call the others is decided by tokens."""

from __future__ import annotations

import pathlib
import socket

from lmcache.testing.ports import free_port
from tests.vllm_shared.prompts import prompt_of
from tests.vllm_v1.conftest import opened, v1_connector
from tests.vllm_v1.operators import apis
from tests.vllm_v1.waiting import wait_until

TOKEN = "a-token-of-sixteen-characters-or-more"
PROMPT = prompt_of(600, seed=1300)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_port_that_is_taken_and_tokens(model_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The scheduler's port is taken; the worker's is not."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"admin {TOKEN}\n")
    tokens.chmod(0o600)
    with socket.socket() as taken:
        port = free_port(2)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        connector = v1_connector(
            internal_api_server_enabled=True, internal_api_server_port_start=port,
            internal_api_server_auth_token_file=str(tokens),
        )  # fmt: skip
        with opened(model_folder, connector) as engine:
            lines = [line for line in engine.log_lines() if "internal API" in line]
            assert len(lines) == 1, lines
            assert "the internal API is not served" in lines[0]
            assert str(port) in lines[0]
            engine.store(PROMPT)
            assert engine.hit(PROMPT).num_cached_tokens == 512
            with apis(port) as (_, stranger), apis(port, token=TOKEN) as (_, worker):
                for method, target in (("GET", "/meta"), ("PUT", "/freeze/enable"), ("DELETE", "/cache/clear")):
                    assert "error" in stranger.ask(method, target, 401).json()
                assert worker.json("GET", "/freeze/status")["freeze"] is False
                assert worker.json("DELETE", "/cache/clear")["num_removed"] == 2
                # The call that switches it off is answered first.
                assert worker.set(internal_api_server_enabled=False) == {"internal_api_server_enabled": False}
                wait_until(lambda: not is_listening(port + 1), "the worker's API is gone")
            assert engine.one(PROMPT).num_cached_tokens == 512
