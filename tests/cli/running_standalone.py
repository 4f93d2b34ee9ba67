"""A real `lmcache standalone` in a process of its own, on a free port, with its lookup socket in a short folder."""

from __future__ import annotations

import os
import pathlib
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any

import httpx

from lmcache.testing.ports import free_port
from tests.conftest import child_env, hear_sigint

_ANSWER_S = 60.0


class RunningStandalone:
    """`environ`: settings by their variables. Killed by `close` at the latest."""

    def __init__(self, *flags: str, **environ: str) -> None:
        self._rpc = tempfile.mkdtemp(prefix="rpc", dir="/tmp")
        port = free_port()
        clean = {name: value for name, value in child_env().items() if not name.startswith("LMCACHE_")}
        own = {"LMCACHE_INTERNAL_API_SERVER_PORT_START": str(port - 1), "VLLM_RPC_BASE_PATH": self._rpc}
        self._stderr = tempfile.NamedTemporaryFile("a")  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "lmcache", "standalone", *flags],
            stdout=subprocess.PIPE, stderr=self._stderr, text=True, bufsize=1, env={**clean, **own, **environ},
            preexec_fn=hear_sigint,
        )  # fmt: skip
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_ANSWER_S)
        self.url = f"http://127.0.0.1:{port}"

    def read_line(self) -> str:
        """The next line it prints; empty where it ended."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(_ANSWER_S), f"it says nothing: {self.errors()}"
        return self.process.stdout.readline().rstrip("\n")

    def wait_until_up(self) -> str:
        line = self.read_line()
        assert " is up: " in line, self.errors()
        self.folder = pathlib.Path(re.findall(r"L1 in (\S+),", line)[0])
        return line

    def refill(self) -> None:
        self.process.send_signal(signal.SIGUSR1)
        assert self.read_line().startswith("the pages are filled from seed ")

    def ask(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        answer = self.http.request(method, path, **more)
        assert answer.status_code == status, answer.text
        return answer.json()

    def checksums(self, first: int, last: int) -> list[str]:
        query = {"slot_mapping": f"[{first},{last}]", "chunk_size": 256}
        found: list[str] = self.ask("GET", "/cache/kvcache/check", params=query)["chunk_checksums"]
        return found

    def store(self, tokens: str) -> None:
        self.ask("POST", "/cache/store", params={"tokens_mock": tokens})

    def retrieve(self, tokens: str) -> int:
        num: int = self.ask("POST", "/cache/retrieve", params={"tokens_mock": tokens})["num_retrieved"]
        return num

    def errors(self) -> str:
        return pathlib.Path(self._stderr.name).read_text()

    def sockets(self) -> list[str]:
        return os.listdir(self._rpc)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(_ANSWER_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            if hasattr(self, "folder"):
                shutil.rmtree(self.folder, ignore_errors=True)
        self.http.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()
        shutil.rmtree(self._rpc, ignore_errors=True)
