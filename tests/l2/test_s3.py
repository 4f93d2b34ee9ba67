"""The S3 adapter, held to the contract against two real servers: moto, and rclone with fewer of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from lmcache.testing.l2_backend import Bench
from lmcache.testing.l2_contract import L2AdapterContract, ObjectContract
from lmcache.testing.l2_contract_listing import ListingContract
from lmcache.testing.l2_contract_room import RoomContract
from lmcache.testing.l2_machine import l2_machine
from lmcache.testing.l2_s3 import MotoBackend, RcloneBackend
from lmcache.testing.s3_servers import MotoServer, RcloneServer


class TestS3OnMoto(L2AdapterContract):
    @pytest.fixture
    def backend(self, moto: MotoServer):
        return MotoBackend(moto)


class TestS3OnRclone(ObjectContract, RoomContract, ListingContract):
    """It keeps objects as files: names are as long as a file's may be, and accents are normalised. It remembers
    sizes, so what is damaged behind its back it damages further."""

    @pytest.fixture
    def backend(self, rclone: RcloneServer):
        return RcloneBackend(rclone)

    @pytest.fixture
    def bench(self, backend: RcloneBackend) -> Iterator[Bench]:
        bench = Bench(backend)
        yield bench
        bench.adapter.close()

    test_odd_keys = None
    test_keys_that_resemble_each_other_are_two = None


# An example makes some hundred requests: few of them.
_machine_servers: list[MotoServer] = []


@pytest.fixture(scope="module", autouse=True)
def _server_of_the_machine(moto: MotoServer) -> Iterator[None]:
    _machine_servers.append(moto)
    yield
    _machine_servers.clear()


TestMachine = l2_machine(lambda: MotoBackend(_machine_servers[0])).TestCase
TestMachine.settings = settings(max_examples=10, stateful_step_count=20)
