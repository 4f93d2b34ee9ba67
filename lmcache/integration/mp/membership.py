"""Being registered with a server, and staying so: one control thread per client.

    joining --hello, map the pool, lock the client file, register--> joined
    joined  --no answer | other boot id | unregistered--> joining

Whoever transfers reads the current `Joined` and keeps it for the length of one transfer.
Losing the server is said once, and so is its return.
"""

from __future__ import annotations

import logging
import pathlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lmcache.errors import DeclinedError, LMCacheError, RequestRefusedError, ServerUnavailableError
from lmcache.memory.client_lock import ClientLock
from lmcache.memory.mapping import PoolMapping, read_nonce
from lmcache.protocol import messages as m
from lmcache.transport.client import Connection

logger = logging.getLogger(__name__)

_RETRY_S = 1.0
_DECLINED_RETRY_S = 10.0
_INCOMPLETE_RETRY_S = 0.025
_POLL_S = 0.02
_CONNECT_POLL_S = 0.005
_OUTBOX_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Joined:
    """One successful registration. Its root is empty while ranks are missing.

    `epoch` is the one it was made for (empty: the engine was never reset).
    """

    boot_id: int
    url: str
    mapping: PoolMapping
    welcome: m.Welcome
    registered: m.Registered
    epoch: bytes


@dataclass(frozen=True, slots=True)
class MembershipConfig:
    url: str
    token: str = ""
    timeout_s: float = 5.0
    heartbeat_s: float = 10.0


MakeRegistration = Callable[[m.Welcome, bytes], m.RegisterWorker | m.RegisterScheduler]
AnswerQuery = Callable[[m.ChecksumQuery], m.ChecksumResult]


class Membership:
    """`make_registration(welcome, nonce)` may raise DeclinedError: the server does not fit this engine."""

    def __init__(
        self,
        config: MembershipConfig,
        client_uid: int,
        role: str,
        make_registration: MakeRegistration,
        answer_query: AnswerQuery | None = None,
        on_removed: Callable[[bytes], None] | None = None,
        touches_pool: bool = False,
    ) -> None:
        self.config = config
        self.client_uid = client_uid
        self.role = role
        self._make_registration = make_registration
        self._answer_query = answer_query
        self._on_removed = on_removed
        self._touches_pool = touches_pool
        self._joined: Joined | None = None
        self._last: Joined | None = None
        self._mapping: PoolMapping | None = None
        self._lock: ClientLock | None = None
        self._outbox: deque[tuple[int, m.Request]] = deque(maxlen=_OUTBOX_MAX)
        self._event_cursor = 0
        self._incomplete_retry_s = _INCOMPLETE_RETRY_S
        self._said = ""
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name=f"lmcache-{role}-control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def current(self) -> Joined | None:
        """The registration in force, or None. Any thread."""
        return None if self._lost.is_set() else self._joined

    @property
    def last(self) -> Joined | None:
        """The latest registration, in force or not: what was promised under it can still be read."""
        return self._last

    def post_later(self, boot_id: int, message: m.Request) -> None:
        """Have the control thread send this soon, to this boot only. Any thread; costs the caller nothing."""
        self._outbox.append((boot_id, message))

    def tell_later(self, message: m.Request) -> None:
        """The same to whichever boot we are registered with now, if any."""
        joined = self._joined
        if joined is not None:
            self.post_later(joined.boot_id, message)

    def lose(self, boot_id: int) -> None:
        """Someone met an error that says this registration is over. Any thread; acts at once."""
        joined = self._joined
        if joined is not None and joined.boot_id == boot_id:
            self._lost.set()

    def refresh(self) -> None:
        """Register again although nothing was lost (a new epoch)."""
        self._lost.set()

    def wait_until_joined(self, timeout_s: float) -> Joined | None:
        """For start-up and tests: the registration, once its root is known where one is expected."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            joined = self.current
            if joined is not None and (joined.registered.root or self.role != "scheduler"):
                return joined
            time.sleep(0.005)
        return None

    def stop(self) -> None:
        """Say goodbye if there is somebody to hear it, and let go of the client file."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # The control thread

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            try:
                wait_s = self._turn()
            except Exception:  # the root of a thread: log, drop the registration, start over
                logger.exception("the control thread failed; registering again")
                self._forget()
                wait_s = _RETRY_S
        self._say_goodbye()

    def _turn(self) -> float:
        """One step of the state machine; returns how long to wait before the next."""
        try:
            if self._joined is None or self._lost.is_set():
                self._joined = None
                self._lost.clear()
                self._join()
            return self._stay()
        except (DeclinedError, RequestRefusedError) as error:
            code = error.code if isinstance(error, RequestRefusedError) else ""
            is_routine = code == m.ErrorCode.UNREGISTERED
            self._forget()
            if is_routine:
                return 0.0
            self._say(logging.WARNING, f"lmcache declines to cache: {error}")
            # A server that restarted between our hello and our registration has another nonce by now.
            return _RETRY_S if code == m.ErrorCode.FORBIDDEN else _DECLINED_RETRY_S
        except ServerUnavailableError as error:
            self._forget()
            text = f"no lmcache server at {self.config.url}, serving on without cache"
            self._say(logging.WARNING, f"{text} ({error})", state=text)
            return _RETRY_S
        except LMCacheError as error:
            self._forget()
            self._say(logging.WARNING, f"lmcache is not used: {error}")
            return _DECLINED_RETRY_S

    def _join(self) -> None:
        connection = self._connect(self.config.url)
        welcome = self._call(connection, m.Hello(self.config.token), 0)
        if not isinstance(welcome, m.Welcome):
            raise LMCacheError(f"the server answered hello with {type(welcome).__name__}")
        folder = pathlib.Path(welcome.pool_folder)
        nonce = read_nonce(folder)
        mapping = self._map(folder, welcome)
        self._hold_lock(folder)
        registration = self._make_registration(welcome, nonce)
        registered = self._call(connection, registration, connection.boot_id)
        if not isinstance(registered, m.Registered):
            raise LMCacheError(f"the server answered a registration with {type(registered).__name__}")
        epoch = registration.epoch if isinstance(registration, m.RegisterScheduler) else b""
        if self._last is None or self._last.boot_id != connection.boot_id:
            self._event_cursor = 0
        joined = Joined(connection.boot_id, welcome.ipc_url, mapping, welcome, registered, epoch)
        self._joined = self._last = joined
        if not registered.missing_ranks:
            self._say(logging.INFO, f"lmcache {self.role} joined {self.config.url} (instance {registered.instance_id})")

    def _map(self, folder: pathlib.Path, welcome: m.Welcome) -> PoolMapping:
        old = self._mapping
        if old is not None and old.pool_id == welcome.pool_id:
            return old
        mapping = self._mapping = PoolMapping(folder, welcome.pool_id, welcome.index_inode)
        if self._touches_pool:
            gone = lambda: self._stop.is_set() or self._mapping is not mapping  # noqa: E731
            threading.Thread(target=mapping.touch_ahead, args=(gone,), name="lmcache-touch", daemon=True).start()
        return mapping

    def _hold_lock(self, folder: pathlib.Path) -> None:
        if self._lock is not None and self._lock.is_reachable() and self._lock.path.parent.parent == folder:
            return
        if self._lock is not None:
            self._lock.release()
        # Open to whom the folder is open to: a server of another user must be able to ask for the lock.
        mode = 0o660 if (folder / "clients").stat().st_mode & 0o020 else 0o600
        self._lock = ClientLock(folder, self.client_uid, mode)

    def _stay(self) -> float:
        """Heartbeat and answer questions until something is lost or must be asked again."""
        joined = self._joined
        connection = self._connection
        if joined is None or connection is None:
            return _RETRY_S
        if joined.registered.missing_ranks or (self.role == "scheduler" and not joined.registered.root):
            self._lost.set()
            self._incomplete_retry_s = min(2 * self._incomplete_retry_s, _DECLINED_RETRY_S)
            return self._incomplete_retry_s
        self._incomplete_retry_s = _INCOMPLETE_RETRY_S
        next_ping_s = time.monotonic() + self.config.heartbeat_s
        while not self._stop.is_set() and not self._lost.is_set():
            connection.receive(_POLL_S)
            self._answer(connection, joined)
            self._send_outbox(connection, joined)
            if time.monotonic() >= next_ping_s:
                self._ping(connection, joined)
                next_ping_s = time.monotonic() + self.config.heartbeat_s
        return 0.0

    def _send_outbox(self, connection: Connection, joined: Joined) -> None:
        while self._outbox:
            boot_id, message = self._outbox.popleft()
            if boot_id == joined.boot_id:  # another boot knows nothing of it
                connection.post(message, boot_id)

    def _ping(self, connection: Connection, joined: Joined) -> None:
        ping = m.Ping(joined.registered.instance_id, self._event_cursor)
        pong = self._call(connection, ping, joined.boot_id)
        if connection.boot_id != joined.boot_id:
            raise ServerUnavailableError("it was restarted")
        if isinstance(pong, m.Pong):
            self._event_cursor = pong.event_cursor
            if pong.removed and self._on_removed is not None:
                self._on_removed(pong.removed)

    def _answer(self, connection: Connection, joined: Joined) -> None:
        while connection.unsolicited:
            query = connection.unsolicited.pop(0)
            if isinstance(query, m.ChecksumQuery) and self._answer_query is not None:
                connection.post(self._answer_query(query), joined.boot_id)

    def _call(self, connection: Connection, message: m.Request, boot_id: int) -> m.Reply:
        """The answer, if it comes in time. Whoever ends us does not wait for a server that is not there."""
        deadline = time.monotonic() + self.config.timeout_s
        while not connection.is_connected and time.monotonic() < deadline and not self._stop.wait(_CONNECT_POLL_S):
            pass
        left_s = 0.0 if self._stop.is_set() and not connection.is_connected else deadline - time.monotonic()
        return connection.call(message, boot_id, max(0.0, left_s))

    def _connect(self, url: str) -> Connection:
        if self._connection is None:
            self._connection = Connection(url, self.client_uid)
        return self._connection

    def _forget(self) -> None:
        """Start over with a new connection, so that no late answer is mistaken for a new one."""
        self._joined = None
        self._lost.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _say_goodbye(self) -> None:
        joined, connection = self._joined, self._connection
        if joined is not None and connection is not None:
            self._send_outbox(connection, joined)
            connection.post(m.Unregister(), joined.boot_id)
            connection.receive(0.1)
        self._forget()

    def _say(self, level: int, text: str, state: str = "") -> None:
        """Log a state once, not at each retry; `state` where the text also says what differs between them."""
        if (state or text) != self._said:
            self._said = state or text
            logger.log(level, "%s", text)
