"""`make demo`: one prompt of 4K tokens, answered by a real vLLM on CPU four times, three of them from the cache.

Server and vLLM are started here, with a small model of random weights, and gone at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common import RunningServer, children_kept_quiet, free_port, interrupt_once, start_server
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_models import SMALL_LLAMA
from lmcache.testing.vllm_spec import EngineSpec, mp_connector

_POOL_GIB = 0.5
_CLIENTS = 2  # vLLM's scheduler and its one worker

Connect = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """One answer to the prompt. `ttft_s`: seconds to its first token."""

    when: str
    ttft_s: float
    num_cached_tokens: int


@dataclass
class Stage:
    """The server and the engine as they are now, and how to make each anew."""

    folder: pathlib.Path
    model: dict[str, Any]
    connect: Connect
    port: int = field(default_factory=free_port)
    server: RunningServer | None = None
    engine: EngineProcess | None = None

    def start_server(self) -> None:
        self.server = start_server(_POOL_GIB, port=self.port, name=f"demo-{os.getpid()}")

    def start_engine(self) -> None:
        self.engine = EngineProcess(EngineSpec(self.folder, self.model, self.connect(self.port)))
        self.wait_until_joined()
        self.engine.call("time_to_first_token", list(range(1, 300)))  # the first request ever is slower

    def wait_until_joined(self) -> None:
        """Both halves of the connector are registered, and the scheduler knows it."""
        assert self.server is not None
        assert self.engine is not None
        self.server.wait_for_clients(_CLIENTS)
        if not self.engine.call("wait_until_joined"):
            raise RuntimeError("vLLM did not join the server")

    def forget(self) -> None:
        """vLLM's own prefix cache is emptied; what it was saving is saved first."""
        assert self.engine is not None
        self.engine.call("settle")
        self.engine.forget()

    def restart_engine(self) -> None:
        assert self.engine is not None
        self.engine.close()
        self.start_engine()

    def crash_server(self) -> None:
        assert self.server is not None
        self.forget()
        self.server.kill()
        self.start_server()
        self.wait_until_joined()

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        if self.server is not None:
            self.server.stop()


def play(stage: Stage, prompt: list[int], say: Callable[[str], None]) -> Iterator[Answer]:
    say("starting `lmcache server`")
    stage.start_server()
    say("starting vLLM (imports and model: half a minute)")
    stage.start_engine()
    acts: list[tuple[str, str, Callable[[], None]]] = [
        ("first time: all is computed", "the first request", lambda: None),
        ("after vLLM forgot it", "vLLM drops its own prefix cache", stage.forget),
        ("after vLLM was restarted", "vLLM is ended and started again", stage.restart_engine),
        ("after the server was killed", "the server gets SIGKILL and is started again", stage.crash_server),
    ]
    for when, what, prepare in acts:
        say(what)
        prepare()
        assert stage.engine is not None
        ttft_s, num_cached = stage.engine.call("time_to_first_token", prompt)
        yield Answer(when, ttft_s, num_cached)


def table(answers: Sequence[Answer], num_tokens: int) -> str:
    lines = [f"{'prompt of ' + str(num_tokens) + ' tokens':<30}{'cached tokens':>15}{'first token after':>20}{'':>10}"]
    for answer in answers:
        times = f"{answers[0].ttft_s / answer.ttft_s:.0f}x" if answer is not answers[0] else ""
        took = f"{answer.ttft_s * 1000:.0f} ms"
        lines.append(f"{answer.when:<30}{answer.num_cached_tokens:>15}{took:>20}{times:>10}")
    return "\n".join(line.rstrip() for line in lines)


def run(num_tokens: int, model: dict[str, Any], connect: Connect = mp_connector) -> list[Answer]:
    """`connect`: what vLLM's connector is told, by the server's port."""
    rng = random.Random(0)
    prompt = [rng.randrange(model["vocab_size"]) for _ in range(num_tokens)]
    with (
        tempfile.TemporaryDirectory(prefix="lmcache-demo-") as folder,
        children_kept_quiet(),
        contextlib.closing(Stage(pathlib.Path(folder), model, connect)) as stage,
    ):
        return list(play(stage, prompt, lambda what: print(f"- {what}", flush=True)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096, help="length of the prompt (default: %(default)s)")
    num_tokens = parser.parse_args().tokens
    interrupt_once()
    try:
        answers = run(num_tokens, SMALL_LLAMA)
    except KeyboardInterrupt:
        print("interrupted; server, vLLM and pool are gone", file=sys.stderr)
        return 130
    print(f"\n{table(answers, num_tokens)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
