"""A real `lmcache server` in a process of its own, on free ports, with a pool of its own name."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

from lmcache.testing.ports import free_port
from lmcache.testing.waiting import PATIENCE_S
from tests.conftest import child_env

_UP_S = 60.0
_LOOK_S = 0.01


class RunningServer:
    """`command`: what to run in place of the `lmcache` command line."""

    def __init__(
        self, folder: pathlib.Path, *flags: str, command: Sequence[str] = ("-m", "lmcache", "server"), **env: str
    ) -> None:
        self.folder = folder
        self.http_port = free_port()
        # Written and read through descriptors of their own: they must not share a position.
        self._stderr = tempfile.NamedTemporaryFile("a")  # noqa: SIM115  # closed with the process
        name = folder.name.removeprefix("lmcache-")
        arguments = ["--http-port", str(self.http_port), "--shm-name", name, *flags]
        if "--port" not in flags:
            arguments += ["--port", "0"]
        if "--l1-size-gb" not in flags:
            arguments += ["--l1-size-gb", "0.03125"]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", *command, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True, env=child_env(**env),
        )  # fmt: skip
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.http_port}", timeout=PATIENCE_S)

    def wait_until_listening(self) -> None:
        self._wait_for("/")

    def wait_until_up(self) -> list[str]:
        """The lines it says when it is up."""
        self._wait_for("/healthcheck")
        lines: list[str] = []
        assert self.process.stdout is not None
        while not (lines and "--kv-transfer-config" in lines[-1]):
            lines.append(self.process.stdout.readline().rstrip("\n"))
            assert lines[-1] or self.process.poll() is None, self.errors()
        self.zmq_url = next(line.split()[1] for line in lines if line.startswith("  ZMQ"))
        self.connector = json.loads(re.findall(r"'(.*)'", lines[-1])[0])
        return lines

    def _wait_for(self, path: str) -> None:
        deadline = time.monotonic() + _UP_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.errors()}"
            with contextlib.suppress(httpx.TransportError):
                if self.http.get(path).status_code == 200:
                    return
            time.sleep(_LOOK_S)
        raise AssertionError(f"no 200 from {path}: {self.errors()}")

    def errors(self) -> str:
        """What it wrote to stderr so far."""
        return pathlib.Path(self._stderr.name).read_text()

    def wait_for_error(self, text: str) -> None:
        deadline = time.monotonic() + _UP_S
        while text not in self.errors():
            assert time.monotonic() < deadline, f"never said {text!r}: {self.errors()}"
            time.sleep(_LOOK_S)

    def write_line(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.http.close()
        for stream in (self.process.stdin, self.process.stdout, self._stderr):
            if stream is not None:
                stream.close()


@contextmanager
def running_server(
    folder: pathlib.Path, *flags: str, only_listens: bool = False, **settings: object
) -> Iterator[RunningServer]:
    """Up, or with `only_listens` as soon as it answers at all; afterwards nothing of it is left."""
    server = RunningServer(folder, *flags, **settings)  # type: ignore[arg-type]
    try:
        if only_listens:
            server.wait_until_listening()
        else:
            server.wait_until_up()
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)
