"""Changes the lookup client of a scheduler, or the lookup server of a worker, while it is in use.

Operators take turns by a mutex of their own. A lookup holds another one, for as long as it takes; a change of
the client holds that one for a moment. What takes long, to make a client or to close one, is done while
lookups go on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup.base import LookupClient, LookupServer, LookupTarget, TierLookups
from lmcache.embedded.lookup.factory import LookupClientFactory, MadeClient
from lmcache.embedded.lookup.introduction_server import NO_NAME
from lmcache.errors import LookupSwitchError

NO_CLIENT = "lookup client not available"
NO_SERVER = "lookup server not available"
NO_METADATA = "metadata not available"
NO_ENGINE = "engine not available"


class SwitchedLookupClient:
    """The `LookupClient` of a scheduler: whichever is in place now. Without one, lookups miss."""

    def __init__(self) -> None:
        self._client: LookupClient | None = None
        # Guards the client while it is used. Who wants it queues at the gate, so that a change gets its turn
        # between two lookups, however fast they follow each other.
        self._mutex = threading.Lock()
        self._gate = threading.Lock()

    @contextmanager
    def _using(self) -> Iterator[LookupClient | None]:
        with self._gate:
            self._mutex.acquire()
        try:
            yield self._client
        finally:
            self._mutex.release()

    def replace(self, client: LookupClient | None) -> LookupClient | None:
        """The one that was in place, to be closed: nobody uses it any more, and ranks hold nothing for it that
        could be mixed up with what the new one finds. Waits for the call that is under way."""
        with self._using() as old:
            if old is not None:
                old.end_lookups()
            self._client = client
            return old

    @property
    def current(self) -> LookupClient | None:
        return self._client

    def layouts(self) -> list[KVLayout] | None:
        with self._using() as client:
            return client.layouts() if client is not None else None

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int | None:
        with self._using() as client:
            return client.lookup(lookup_id, prompt, may_wait) if client is not None else 0

    def forget(self, lookup_id: str) -> None:
        with self._using() as client:
            if client is not None:
                client.forget(lookup_id)

    def end_lookups(self) -> None:
        with self._using() as client:
            if client is not None:
                client.end_lookups()

    def name(self) -> str:
        client = self._client
        return client.name() if client is not None else NO_NAME

    def close(self) -> None:
        """Idempotent."""
        old = self.replace(None)
        if old is not None:
            old.close()


class ClientSwitch:
    """A `LookupSwitch` over `client`, which the scheduler uses. `factory` None: nothing can be made here."""

    def __init__(self, factory: LookupClientFactory | None) -> None:
        self.client = SwitchedLookupClient()
        self._factory = factory
        self._engine: TierLookups | None = None
        self._is_over = False
        # One change at a time.
        self._mutex = threading.Lock()

    @property
    def current(self) -> LookupClient | None:
        """The outermost one that is in place now."""
        return self.client.current

    @property
    def engine(self) -> TierLookups | None:
        """The scheduler's own, where its client has one."""
        return self._engine

    def info(self) -> tuple[str, str]:
        return self.client.name(), NO_NAME

    def close(self) -> str:
        with self._mutex:
            old = self._existing().name()
            self._replace(None, None)
            return old

    def create(self, is_dry_run: bool) -> str:
        with self._mutex:
            if not is_dry_run:
                return self._put_new()
            client = self._make(is_dry_run=True).client
            client.close()
            return client.name()

    def recreate(self) -> tuple[str, str]:
        with self._mutex:
            return self._existing().name(), self._put_new()

    def shut_down(self) -> None:
        """The process ends: nothing is made any more. Idempotent."""
        with self._mutex:
            self._is_over = True
            self._replace(None, None)

    def _existing(self) -> LookupClient:
        client = self.client.current
        if client is None:
            raise LookupSwitchError(NO_CLIENT)
        return client

    def _make(self, is_dry_run: bool = False) -> MadeClient:
        if self._factory is None:
            raise LookupSwitchError(NO_METADATA)
        if self._is_over:
            raise LookupSwitchError(NO_CLIENT)
        return self._factory.create_lookup_client(is_dry_run)

    def _put_new(self) -> str:
        made = self._make()
        self._replace(made.client, made.engine)
        return made.client.name()

    def _replace(self, client: LookupClient | None, engine: TierLookups | None) -> None:
        self._engine = engine
        old = self.client.replace(client)
        if old is not None:
            old.close()


class ServerSwitch:
    """A `LookupSwitch` that owns the server of a rank. `factory` None: nothing can be made here.

    The rank always tells who it is: where it has no lookup server, something without a name does.
    """

    def __init__(self, factory: LookupClientFactory | None, rank: int) -> None:
        self._factory = factory
        self._rank = rank
        self._target: LookupTarget | None = None
        self._server: LookupServer | None = None
        # One change at a time.
        self._mutex = threading.Lock()

    def serve(self, target: LookupTarget) -> None:
        """Answer from this target from now on. Raises ConfigError."""
        with self._mutex:
            self._target = target
            self._put(self._make())

    @property
    def server(self) -> LookupServer | None:
        """The one that answers lookups now; None while none does."""
        server = self._server
        return server if server is not None and server.name() != NO_NAME else None

    def info(self) -> tuple[str, str]:
        server = self.server
        return NO_NAME, server.name() if server is not None else NO_NAME

    def close(self) -> str:
        with self._mutex:
            old = self._existing()
            factory, target = self._parts()
            self._put(factory.create_introduction_server(self._rank, target))
            return old

    def create(self, is_dry_run: bool) -> str:
        """A server that does not listen disturbs nobody."""
        with self._mutex:
            new = self._make()
            if not is_dry_run:
                self._put(new)
            return new.name()

    def recreate(self) -> tuple[str, str]:
        with self._mutex:
            old, new = self._existing(), self._make()
            self._put(new)
            return old, new.name()

    def shut_down(self) -> None:
        """The process ends. Idempotent."""
        with self._mutex:
            self._target = None
            server, self._server = self._server, None
            if server is not None:
                server.close()

    def _existing(self) -> str:
        _, name = self.info()
        if name == NO_NAME:
            raise LookupSwitchError(NO_SERVER)
        return name

    def _parts(self) -> tuple[LookupClientFactory, LookupTarget]:
        if self._factory is None:
            raise LookupSwitchError(NO_METADATA)
        if self._target is None:
            raise LookupSwitchError(NO_ENGINE)
        return self._factory, self._target

    def _make(self) -> LookupServer:
        factory, target = self._parts()
        return factory.create_lookup_server(self._rank, target)

    def _put(self, new: LookupServer) -> None:
        """The old one has the address. Raises ConfigError, and then nobody listens."""
        old, self._server = self._server, None
        if old is not None:
            old.close()
        new.start()
        self._server = new
