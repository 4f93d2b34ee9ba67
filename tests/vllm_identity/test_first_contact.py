"""At its start an engine asks the server whether their sizes fit, and waits for one that is there and busy."""

from __future__ import annotations

import warnings

import pytest

from lmcache.errors import DeadlineExceededError
from lmcache.integration.vllm.mp_config import MPConnectorConfig
from lmcache.protocol import messages as m
from lmcache.testing.paged_memory import BLOCK_SIZE, make_layout

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM's own imports have to say
    from lmcache.integration.vllm import worker_adapter
    from lmcache.integration.vllm.parallel import ParallelStrategy

ANSWER_S = 4.0


class BusyConnection:
    """To a server that is connected to at once, and answers after `ANSWER_S`, which nobody waits for here."""

    def __init__(self, url: str, client_uid: int) -> None:
        self.url = url

    def send(self, message: m.Request, boot_id: int, timeout_s: float = 0.0) -> int:
        assert isinstance(message, m.Hello)
        return 1

    def wait_or_raise(self, number: int, timeout_s: float, what: str) -> m.Reply:
        if timeout_s < ANSWER_S:
            raise DeadlineExceededError(f"{self.url} did not answer {what}")
        return m.Welcome("1", "/nowhere", b"pool", 1, BLOCK_SIZE + 1, "blake3", self.url, False)

    def call(self, message: m.Request, boot_id: int, timeout_s: float) -> m.Reply:
        return self.wait_or_raise(self.send(message, boot_id, timeout_s), timeout_s, type(message).__name__)

    def close(self) -> None:
        """Nothing is open."""


def test_busy_server_whose_chunks_do_not_fit_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_adapter, "Connection", BusyConnection)
    config = MPConnectorConfig(mq_timeout_s=ANSWER_S)
    adapter = worker_adapter.LMCacheMPWorkerAdapter(config, "org/m", "e", ParallelStrategy(1, 0, 1, False))
    with pytest.raises(ValueError, match=f"{BLOCK_SIZE + 1} .*{BLOCK_SIZE}"):
        adapter.register(make_layout(4), [], [])
