"""A scheduler and its only worker in one process: lookups go without a socket, by the same rules."""

from __future__ import annotations

import pathlib
import tempfile
import threading
from collections.abc import Callable, Iterator

import pytest

from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup import here
from lmcache.embedded.lookup.client import LMCacheLookupClient
from lmcache.embedded.lookup.server import LMCacheLookupServer
from lmcache.errors import KeyFormatError, LMCacheError
from tests.embedded.lookup_site import LONG_MS, Rank
from tests.embedded.site import prompt_of


class ThreadNotingRank(Rank):
    """Knows in whose thread it was asked."""

    def lookup(self, lookup_id: str, prompt: Prompt, wait_s: float) -> int:
        self.thread = threading.current_thread()
        return super().lookup(lookup_id, prompt, wait_s)


class Both:
    def __init__(self, folder: pathlib.Path) -> None:
        self.target = ThreadNotingRank(16, 2)
        self.path = folder / "socket"
        self.server = LMCacheLookupServer(self.path, self.target)
        self.server.start()
        self.client = LMCacheLookupClient([f"ipc://{self.path}"], lambda: LONG_MS)

    def is_asked_here(self) -> bool:
        assert self.client.lookup("request", prompt_of("abc")) == 2
        return self.target.thread is threading.current_thread()

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def both() -> Iterator[Both]:
    with tempfile.TemporaryDirectory(prefix="lmc-") as folder:
        found = Both(pathlib.Path(folder))
        yield found
        found.close()


def test_the_engine_is_asked_in_the_schedulers_thread(both: Both) -> None:
    assert both.is_asked_here()
    ((_, asked, wait_s),) = both.target.asked
    assert asked == prompt_of("abc")
    assert 0 < wait_s < LONG_MS / 1000


@pytest.mark.parametrize("make_error", [lambda: KeyFormatError("no such key"), lambda: RuntimeError("a bug")])
def test_failures_are_misses(both: Both, make_error: Callable[[], LMCacheError]) -> None:
    both.target.found = make_error()
    assert both.client.lookup("request", prompt_of("abc")) == 0
    both.target.found = 2
    assert both.is_asked_here()


def test_what_a_process_inherited_is_not_its_own(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here.os, "getpid", lambda: -1)
    assert not both.is_asked_here()


def test_a_server_that_was_closed_is_not_asked(both: Both) -> None:
    both.server.close()
    assert both.client.lookup("request", prompt_of("abc")) == 0
    assert not both.target.asked


def test_one_of_several_ranks_is_asked_over_its_socket(both: Both) -> None:
    with tempfile.TemporaryDirectory(prefix="lmc-") as folder:
        other = Both(pathlib.Path(folder))
        client = LMCacheLookupClient([f"ipc://{both.path}", f"ipc://{other.path}"], lambda: LONG_MS)
        assert client.lookup("request", prompt_of("abc")) == 2
        assert other.target.thread is not threading.current_thread()
        client.close()
        other.close()
