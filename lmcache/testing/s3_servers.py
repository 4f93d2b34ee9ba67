"""S3 servers of other projects as processes of their own: moto, which takes any key, and rclone, which checks them."""

from __future__ import annotations

import http.client
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import quote
from xml.etree import ElementTree

from lmcache.testing.ports import free_port

ACCESS_KEY_ID = "lmcache-test-key"
SECRET_ACCESS_KEY = "lmcache-test-secret"
REGION = "us-east-1"
BUCKET = "lmcache-test"

_START_TIMEOUT_S = 30.0
# What moto wants to see before it gives an object; it does not check it.
_ANY_SIGNATURE = {
    "Authorization": f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY_ID}/20200101/{REGION}/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
}


class S3Server:
    """A process on a port that stays the same when it is killed and started again."""

    def __init__(self, command: list[str], port: int) -> None:
        self.port = port
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self._command[0]} did not start") from None
                time.sleep(0.02)

    def pause(self) -> None:
        """It takes connections, as the kernel does for it, and answers nothing."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class MotoServer(S3Server):
    """Objects in its memory. Its bucket is reached here by plain HTTP."""

    def __init__(self) -> None:
        port = free_port()
        super().__init__([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port)

    def start(self) -> None:
        super().start()
        self._ask("PUT", f"/{BUCKET}")

    def get(self, name: str) -> bytes | None:
        status, content = self._ask("GET", _path(name))
        return content if status == 200 else None

    def put(self, name: str, content: bytes) -> None:
        self._ask("PUT", _path(name), content)

    def delete(self, name: str) -> None:
        self._ask("DELETE", _path(name))

    def names(self, prefix: str) -> list[str]:
        """The first thousand names that begin with `prefix`."""
        _, content = self._ask("GET", f"/{BUCKET}?list-type=2&prefix={quote(prefix, safe='')}")
        return [element.text or "" for element in ElementTree.fromstring(content).iterfind("{*}Contents/{*}Key")]

    def num_uploads(self) -> int:
        """Multipart uploads that were begun and neither completed nor aborted."""
        _, content = self._ask("GET", f"/{BUCKET}?uploads")
        return len(ElementTree.fromstring(content).findall("{*}Upload"))

    def _ask(self, method: str, path: str, content: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, content, _ANY_SIGNATURE)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class RcloneServer(S3Server):
    """Objects as files below `folder`, in the bucket `BUCKET`; only our keys are let in."""

    def __init__(self, program: str, folder: pathlib.Path) -> None:
        port = free_port()
        self.bucket_folder = folder / BUCKET
        self.bucket_folder.mkdir(parents=True)
        command = [
            program, "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}", "--config", "/dev/null",
            "--auth-key", f"{ACCESS_KEY_ID},{SECRET_ACCESS_KEY}", "--vfs-cache-mode", "off", "--dir-cache-time", "1ms",
        ]  # fmt: skip
        super().__init__(command, port)


def rclone_program() -> str | None:
    """Beside the interpreter, where its package puts it, or in the search path; None: it is not installed."""
    return shutil.which("rclone", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("rclone")


def _path(name: str) -> str:
    return f"/{BUCKET}/{quote(name, safe='/')}"
