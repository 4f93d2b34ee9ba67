"""Random requests of one engine: prompts that share chunks with those of other engines, so that writers collide."""

from __future__ import annotations

import random
import time
from typing import Protocol

from lmcache.integration.mp.lookups import Promise
from lmcache.testing import control as c

_THINK_S_MAX = 0.004
_COUNT_EVERY = 50


class RequestTaker(Protocol):
    """What a request needs of an engine."""

    def look(self, request_id: str, names: list[str]) -> Promise: ...

    def keep(self, request_id: str, promise: Promise, num_chunks: int) -> Promise: ...

    def load(self, promise: Promise) -> c.LoadReport: ...

    def announce(self, names: list[str]) -> None: ...

    def store(self, names: list[str]) -> c.StoreReport: ...

    def end(self, request_id: str) -> None: ...


class TrafficSource:
    """One request per call: look up, load what is promised, store the rest, end or forget."""

    def __init__(self, channel: c.Channel, rng: random.Random, num_prompts: int, chunks_per_prompt: int) -> None:
        self._channel = channel
        self._rng = rng
        self._num_prompts = num_prompts
        self._chunks_per_prompt = chunks_per_prompt
        self._number = 0
        self._counts = {True: 0, False: 0}

    def run_request(self, engine: RequestTaker) -> None:
        rng = self._rng
        self._number += 1
        request_id = f"r{self._number}-{rng.getrandbits(32):x}"
        names = prompt_names(rng.randrange(self._num_prompts), rng.randint(1, self._chunks_per_prompt))
        promise = engine.look(request_id, names)
        if len(promise.chunks) > 1 and rng.random() < 0.2:
            promise = engine.keep(request_id, promise, rng.randrange(1, len(promise.chunks)))
        if promise.chunks:
            self._counts[engine.load(promise).is_ok] += 1
        # Now and then everything once more, as engines do that were asked at the same time.
        missing = names[len(promise.chunks) :] if rng.random() < 0.8 else names
        if missing and rng.random() < 0.6:
            # Now and then something else than what is stored in the end, or nothing at all.
            engine.announce(missing if rng.random() < 0.8 else names[-1:])
            time.sleep(rng.random() * _THINK_S_MAX)
        if missing and rng.random() < 0.95:
            engine.store(missing)
        if rng.random() < 0.97:
            engine.end(request_id)
        if self._number % _COUNT_EVERY == 0:
            self._tell_counts()
        time.sleep(rng.random() * _THINK_S_MAX)

    def _tell_counts(self) -> None:
        self._channel.send(c.TrafficCount(self._counts[True], self._counts[False]))
        self._counts = {True: 0, False: 0}


def prompt_names(prompt: int, num_chunks: int) -> list[str]:
    """The first chunks of a prompt. Prompts come in pairs that share their first two chunks."""
    return [f"p{prompt // 2 if index < 2 else prompt + 1000}.{index}" for index in range(num_chunks)]
