"""A server of its own with chunks that the synthetic engines of the test kit can store, and those engines."""

from __future__ import annotations

import hashlib
import pathlib
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec
import numpy as np

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.memory.mapping import read_nonce
from lmcache.protocol import messages as m
from lmcache.testing.nursery import Nursery
from lmcache.testing.paged_memory import BLOCKS_PER_CHUNK, CHUNK_SIZE, NUM_LAYERS, PAGE_BYTES, content_of, digest_of
from lmcache.testing.ports import free_port
from lmcache.testing.processes import EngineHandle
from lmcache.testing.waiting import PATIENCE_S, wait_until
from lmcache.transport.client import Connection
from tests.server.running import RunningServer

# The engines store from the second half of their blocks and load into the first.
NUM_BLOCKS = 64
FIRST_STORED_CHUNK = 8
# What a page holds that nobody wrote to, and the loaded half before a load.
_POISON = 0xA5


class EngineSite:
    """One thread's. `http` asks the server; `start_engine` waits until the engine has joined."""

    def __init__(self, folder: pathlib.Path, nursery: Nursery, *flags: str, **settings: Any) -> None:
        self._nursery = nursery
        needed = ("--chunk-size", str(CHUNK_SIZE), "--port", str(free_port()))
        self.server = RunningServer(folder, *needed, *flags, **settings)
        self._engines: list[EngineHandle] = []

    @property
    def http(self) -> httpx.Client:
        return self.server.http

    def start_engine(self, name: str = "engine", num_ranks: int = 1) -> EngineHandle:
        engine = EngineHandle(self._nursery, name, self.server.zmq_url, num_ranks, patience_s=PATIENCE_S)
        self._engines.append(engine)
        engine.wait_joined()
        return engine

    def instance_ids(self) -> list[int]:
        found: list[int] = self.http.get("/status").json()["registered_gpu_ids"]
        return found

    def l1(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/status").json()["storage_manager"]["l1_manager"]
        return found

    def num_objects(self) -> int:
        return int(self.l1()["total_object_count"])

    def wait_until_unlocked(self) -> None:
        """Sessions are ended a moment after their requests."""
        wait_until(lambda: not self.l1()["read_locked_count"])

    def wait_until_alone(self, instance_ids: list[int]) -> None:
        """Those who unregistered or died are forgotten a moment after it."""
        wait_until(lambda: self.instance_ids() == instance_ids)

    def stop_engines(self) -> None:
        for engine in self._engines:
            engine.close()

    def close(self) -> None:
        self.stop_engines()
        self.server.close()
        shutil.rmtree(self.server.folder, ignore_errors=True)


@contextmanager
def engine_site(folder: pathlib.Path, nursery: Nursery, *flags: str, **settings: Any) -> Iterator[EngineSite]:
    """`settings` as of a RunningServer."""
    site = EngineSite(folder, nursery, *flags, **settings)
    try:
        site.server.wait_until_up()
        yield site
    finally:
        site.close()


class HandmadeWorker:
    """A registration without pages behind it: what it says to the server is the test's business."""

    def __init__(self, server: RunningServer, layout: KVLayout, model_name: str = "handmade") -> None:
        self._connection = Connection(server.zmq_url, secrets.randbits(63) | 1)
        welcome = self._connection.call(m.Hello(), 0, PATIENCE_S)
        assert isinstance(welcome, m.Welcome)
        nonce = read_nonce(pathlib.Path(welcome.pool_folder))
        message = m.RegisterWorker(secrets.token_hex(4), model_name, 1, 0, msgspec.json.encode(layout), nonce)
        registered = self._connection.call(message, self._connection.boot_id, PATIENCE_S)
        assert isinstance(registered, m.Registered)
        self.instance_id = registered.instance_id

    def take_query(self) -> m.ChecksumQuery:
        """The next question of the server."""
        wait_until(self._has_been_asked)
        query = self._connection.unsolicited.pop(0)
        assert isinstance(query, m.ChecksumQuery)
        return query

    def _has_been_asked(self) -> bool:
        self._connection.receive(0.05)
        return bool(self._connection.unsolicited)

    def say(self, result: m.ChecksumResult) -> None:
        self._connection.call(result, self._connection.boot_id, PATIENCE_S)

    def close(self) -> None:
        self._connection.call(m.Unregister(), self._connection.boot_id, PATIENCE_S)
        self._connection.close()


def handmade_layout(num_blocks: int = 8, shape: Sequence[int] | None = None, num_layers: int = 2) -> KVLayout:
    names = tuple(f"model.layers.{number}.attn" for number in range(num_layers))
    group = KernelGroup(names, 64, "torch.bfloat16", tuple(shape or (num_blocks, 1, 16, 2)), "TEST_ATTN")
    return KVLayout(CHUNK_SIZE, num_blocks, (group,), "NL_X_NB_NH_BS_HS", "none")


class ExpectedPages:
    """What an engine's pages of one rank hold, kept by the test: `[layers, blocks, page bytes]`."""

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank
        self.pages = np.full((NUM_LAYERS, NUM_BLOCKS, PAGE_BYTES), _POISON, dtype=np.uint8)

    def stored(self, names: Sequence[str]) -> list[int]:
        """The engine computed and stored these chunks; their blocks in the order of tokens."""
        return self._write(names, FIRST_STORED_CHUNK)

    def loaded(self, names: Sequence[str]) -> list[int]:
        return self._write(names, 0)

    def _write(self, names: Sequence[str], first_chunk: int) -> list[int]:
        blocks: list[int] = []
        for number, name in enumerate(names, first_chunk):
            first = number * BLOCKS_PER_CHUNK
            of_chunk = list(reversed(range(first, first + BLOCKS_PER_CHUNK)))
            self.pages[:, of_chunk] = content_of(digest_of(name), self._rank)
            blocks += of_chunk
        return blocks

    def checksums(self, block_ids: Sequence[int], chunk_size: int) -> list[str]:
        """One MD5 per chunk over all layers, block by block in the given order."""
        found = []
        for start in range(0, len(block_ids), chunk_size):
            digest = hashlib.md5(usedforsecurity=False)
            for layer in self.pages:
                for block_id in block_ids[start : start + chunk_size]:
                    digest.update(layer[block_id].tobytes())
            found.append(digest.hexdigest())
        return found

    def checksums_by_layer(self, block_ids: Sequence[int], chunk_size: int) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for index, layer in enumerate(self.pages):
            starts = range(0, len(block_ids), chunk_size)
            blobs = [b"".join(layer[i].tobytes() for i in block_ids[start : start + chunk_size]) for start in starts]
            found[f"layer_{index}"] = [hashlib.md5(blob, usedforsecurity=False).hexdigest() for blob in blobs]
        return found
