"""The file system adapter finds what a full folder holds without reading payloads: the kernel says what it read."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from lmcache.core.keys import ObjectKey
from lmcache.l2.base import AdapterContext, Source, StoreStatus
from lmcache.l2.fs.adapter import FSL2Adapter
from lmcache.l2.fs.config import FSConfig
from lmcache.l2.fs.names import file_name, is_hashed
from lmcache.testing.waiting import PATIENCE_S
from tests.conftest import child_env

NUM_OBJECTS = 32
PAYLOAD_BYTES = 512 * 1024
_PAGE_BYTES = 4096
# Of the child's own doings, such as a look at its counts.
_SOME_BYTES = 64 * 1024


def fill(base: pathlib.Path, model_name: str) -> None:
    adapter = FSL2Adapter(FSConfig(str(base)), AdapterContext("fs"))
    adapter.open()
    for number in range(NUM_OBJECTS):
        key = ObjectKey(number.to_bytes(32, "big"), model_name, 1)
        assert is_hashed(file_name(key)) == (len(model_name) > 100)
        assert adapter.store(key, Source(memoryview(bytes([number]) * PAYLOAD_BYTES))) is StoreStatus.STORED
    adapter.close()


def told_by_a_start(base: pathlib.Path) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.l2.fs_start_child", str(base)]
    root = pathlib.Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, env=child_env(), capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert ended.returncode == 0, ended.stderr
    told: dict[str, int] = json.loads(ended.stdout)
    return told


@pytest.mark.parametrize(("model_name", "header_bytes"), [("org/m", 0), ("m" * 300, _PAGE_BYTES + 8)])
def test_a_start_reads_no_payload(tmp_path: pathlib.Path, model_name: str, header_bytes: int) -> None:
    """Of a file whose name is a hash it reads the header, of any other nothing."""
    fill(tmp_path, model_name)
    told = told_by_a_start(tmp_path)
    assert told["num_objects"] == NUM_OBJECTS
    assert told["used_bytes"] >= NUM_OBJECTS * PAYLOAD_BYTES
    assert told["verify_bytes"] >= PAYLOAD_BYTES, "what is read is counted"
    assert told["open_bytes"] <= _SOME_BYTES + NUM_OBJECTS * header_bytes
