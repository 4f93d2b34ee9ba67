"""The end of a membership that looks for a server in vain."""

from __future__ import annotations

import threading

from lmcache.errors import DeclinedError
from lmcache.integration.mp.membership import Membership, MembershipConfig
from lmcache.protocol import messages as m
from lmcache.testing.ports import free_port
from lmcache.testing.waiting import PATIENCE_S, wait_until


def no_registration(welcome: m.Welcome, nonce: bytes) -> m.RegisterWorker:
    raise DeclinedError("there is no server to say this to")


def test_nobody_waits_for_a_server_that_is_not_there() -> None:
    config = MembershipConfig(f"tcp://127.0.0.1:{free_port()}", timeout_s=1000.0)
    membership = Membership(config, 1, "worker", no_registration)
    membership.start()
    wait_until(lambda: membership._connection is not None)
    stopping = threading.Thread(target=membership.stop, daemon=True)
    stopping.start()
    stopping.join(PATIENCE_S)
    assert not stopping.is_alive()
    assert membership.current is None
