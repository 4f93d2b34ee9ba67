"""One copying thread's connection to the server, made anew when the server's boot changes."""

from __future__ import annotations

from collections.abc import Callable

from lmcache.errors import RequestRefusedError, ServerUnavailableError
from lmcache.integration.mp.membership import Joined, Membership
from lmcache.protocol import messages as m
from lmcache.transport.client import Connection

_SLICE_S = 0.005


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

    def wait(self, joined: Joined, number: int, timeout_s: float, what: str, meanwhile: Callable[[], None]) -> m.Reply:
        """The answer to a request; `what` names the request in the error if none comes.

        `meanwhile` is called every few milliseconds: other work must not wait for a server
        that does not answer. Its time does not count.
        """
        connection = self._connected(joined)
        try:
            left_s = timeout_s
            while left_s > _SLICE_S:
                reply = connection.wait(number, _SLICE_S)
                if reply is not None:
                    return reply
                connection.raise_if_gone(number, what)
                left_s -= _SLICE_S
                meanwhile()
            return connection.wait_or_raise(number, left_s, what)
        except ServerUnavailableError:
            self._membership.lose(joined.boot_id)
            raise
        except RequestRefusedError as error:
            if error.code == m.ErrorCode.UNREGISTERED:
                self._membership.lose(joined.boot_id)
            raise

    def forget(self, number: int) -> None:
        if self._connection is not None:
            self._connection.forget(number)

    def post(self, joined: Joined, message: m.Request) -> bool:
        """Send without wanting the answer. False where it cannot arrive: no connection, or another boot by now."""
        if self._connection is None or self._boot_id != joined.boot_id:
            return False
        return self._connection.post(message, joined.boot_id)

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
