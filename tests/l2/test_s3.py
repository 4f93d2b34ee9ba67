"""The S3 adapter, held to the contract against two real servers: moto, and rclone with fewer of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from lmcache.testing.l2_contract import L2AdapterContract
from lmcache.testing.l2_machine import l2_machine
from lmcache.testing.l2_s3 import MotoBackend, RcloneBackend
from lmcache.testing.s3_servers import MotoServer, RcloneServer


class TestS3OnMoto(L2AdapterContract):
    @pytest.fixture
    def backend(self, moto: MotoServer):
        return MotoBackend(moto)


class TestS3OnRclone(L2AdapterContract):
    """It keeps objects as files, so names are as long as a file's may be."""

    @pytest.fixture
    def backend(self, rclone: RcloneServer):
        return RcloneBackend(rclone)

    test_odd_keys = None


# One thousand requests or so an example: few of them. A failure is replayed on moto, where it is quick.
_machine_servers: list[MotoServer] = []


@pytest.fixture(scope="module", autouse=True)
def _server_of_the_machine(moto: MotoServer) -> Iterator[None]:
    _machine_servers.append(moto)
    yield
    _machine_servers.clear()


TestMachine = l2_machine(lambda: MotoBackend(_machine_servers[0])).TestCase
TestMachine.settings = settings(max_examples=10, stateful_step_count=20)
