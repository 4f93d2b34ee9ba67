"""One copying thread's connection to the server, made anew when the server's boot changes."""

from __future__ import annotations

from lmcache.errors import RequestRefusedError, ServerUnavailableError
from lmcache.integration.mp.membership import Joined, Membership
from lmcache.protocol import messages as m
from lmcache.transport.client import Connection


class Link:
    """Belongs to one thread. An answer that says the registration is over tells the membership."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._connection: Connection | None = None
        self._boot_id = 0

    def send(self, joined: Joined, message: m.Request, timeout_s: float) -> int:
        """The number under which `wait` finds the answer. Waits for a connection at most."""
        try:
            return self._connected(joined).send(message, joined.boot_id, timeout_s)
        except ServerUnavailableError:
            self._membership.lose(joined.boot_id)
            raise

    def wait(self, joined: Joined, number: int, timeout_s: float, what: str) -> m.Reply:
        """The answer to a request; `what` names the request in the error if none comes."""
        connection = self._connected(joined)
        try:
            return connection.wait_or_raise(number, timeout_s, what)
        except ServerUnavailableError:
            self._membership.lose(joined.boot_id)
            raise
        except RequestRefusedError as error:
            if error.code == m.ErrorCode.UNREGISTERED:
                self._membership.lose(joined.boot_id)
            raise

    def forget(self, joined: Joined, number: int) -> None:
        self._connected(joined).forget(number)

    def post(self, joined: Joined, message: m.Request) -> bool:
        return self._connected(joined).post(message, joined.boot_id)

    def _connected(self, joined: Joined) -> Connection:
        if self._connection is None or self._boot_id != joined.boot_id:
            self.close()
            self._connection = Connection(joined.url, self._membership.client_uid)
            self._boot_id = joined.boot_id
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
