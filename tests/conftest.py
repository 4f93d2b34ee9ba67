"""Shared by all tests: a profile for Hypothesis, pool folders, child processes, a clock, leak checks."""

from __future__ import annotations

import gc
import os
import pathlib
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

import lmcache

# The same examples in every run; LMCACHE_TEST_EXPLORE=1 looks for others.
_EXPLORES = bool(os.environ.get("LMCACHE_TEST_EXPLORE"))
settings.register_profile(
    "lmcache",
    derandomize=not _EXPLORES,
    deadline=None,
    print_blob=True,
    max_examples=600 if _EXPLORES else 60,
    stateful_step_count=30,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("lmcache")

SHARED_MEMORY = pathlib.Path("/dev/shm")
# Several test runs may share a machine: each looks only after folders of its own process.
_FOLDER_PREFIX = f"lmcache-test-{os.getpid()}-"
_SETTLE_S = 20.0
_CHILD_ANSWER_S = 30.0


class FakeClock:
    """Monotonic seconds that pass only when a test says so."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def _own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lmcache-")]


def _own_descriptors() -> list[str]:
    """What this process has open below a pool folder, files and sockets with a name."""
    found = []
    for entry in pathlib.Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if "/lmcache-" in target:
            found.append(target)
    return found


def _own_mappings() -> list[str]:
    lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if _FOLDER_PREFIX in line]


def _own_folders() -> list[str]:
    return [str(path) for path in SHARED_MEMORY.glob(f"{_FOLDER_PREFIX}*")]


def _leaks() -> dict[str, list[str]]:
    return {
        "threads": _own_threads(),
        "descriptors": _own_descriptors(),
        "mappings": _own_mappings(),
        "folders": _own_folders(),
    }


def _new_leaks(before: dict[str, list[str]]) -> dict[str, list[str]]:
    new: dict[str, list[str]] = {}
    for kind, found in _leaks().items():
        left = list(found)
        for known in before[kind]:
            if known in left:
                left.remove(known)
        if left:
            new[kind] = left
    return new


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """A test must end with the threads, pool files, mappings and shared memory it began with."""
    before = _leaks()
    yield
    if not _new_leaks(before):
        return
    gc.collect()
    deadline = time.monotonic() + _SETTLE_S
    while (new := _new_leaks(before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not new, f"left behind: {new}"


@pytest.fixture
def no_descriptor_leak(no_leaks: None) -> Iterator[None]:
    """Stricter, on request: not one descriptor of any kind more than before."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def new_pool_folder() -> pathlib.Path:
    """A name in shared memory that nobody has; the folder is not made."""
    return SHARED_MEMORY / f"{_FOLDER_PREFIX}{uuid.uuid4().hex[:12]}"


@pytest.fixture
def pool_folder() -> Iterator[pathlib.Path]:
    folder = new_pool_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def make_pool_folder() -> Callable[[], pathlib.Path]:
    """For stateful machines, which need a fresh folder per example and remove it themselves."""
    return new_pool_folder


class Child:
    """A Python process that a test talks to by lines, signals and kills."""

    def __init__(self, code: str, arguments: tuple[str, ...], env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True, bufsize=1,
        )  # fmt: skip
        self.pid = self._process.pid
        self._unread = b""

    def read_line(self, timeout_s: float = _CHILD_ANSWER_S) -> str:
        """The next line it prints, without the newline. Fails the test if none comes."""
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            self._take_in(max(0.0, deadline_s - time.monotonic()))
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def _take_in(self, timeout_s: float) -> None:
        """Past the stream's own buffer, whose lines nobody who waits for the descriptor hears of."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(timeout_s), "the child process says nothing"
        more = os.read(self._process.stdout.fileno(), 1 << 16)
        assert more, f"the child process ended with {self._process.wait()}"
        self._unread += more

    def write_line(self, line: str = "") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def stop(self) -> None:
        """SIGSTOP, and wait until every thread of it stands still."""
        self.signal(signal.SIGSTOP)
        deadline = time.monotonic() + _CHILD_ANSWER_S
        while not all(map(self._stands_still, pathlib.Path(f"/proc/{self.pid}/task").iterdir())):
            assert time.monotonic() < deadline, "the child process does not stop"
            time.sleep(0.005)

    @staticmethod
    def _stands_still(task: pathlib.Path) -> bool:
        try:
            return (task / "stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
        except (FileNotFoundError, ProcessLookupError):  # it ended a moment ago
            return True

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill and reap: when this returns, the kernel has let go of all it held."""
        self._process.kill()
        self._process.wait()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout_s: float = _CHILD_ANSWER_S) -> int:
        return self._process.wait(timeout_s)

    def close(self) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def child_env(**extra: str) -> dict[str, str]:
    """The environment of a child process that imports the package under test."""
    package_root = str(pathlib.Path(lmcache.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": package_root, **extra}


def hear_sigint() -> None:
    """For a child, before it begins: one that a shell runs in the background would ignore it, as its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


StartChild = Callable[..., Child]


def _child_starter() -> Iterator[StartChild]:
    children: list[Child] = []

    def start(code: str, *arguments: str, **env: str) -> Child:
        children.append(Child(code, tuple(arguments), child_env(**env)))
        return children[-1]

    yield start
    for child in children:
        child.close()


@pytest.fixture
def start_child() -> Iterator[StartChild]:
    """`start_child(code, *arguments, **env)`: killed at the end of the test at the latest."""
    yield from _child_starter()


@pytest.fixture(scope="module")
def start_module_child() -> Iterator[StartChild]:
    """The same, for a child that all tests of a module share."""
    yield from _child_starter()
