"""The backends of an engine by their documented names: which tiers are open, how each takes part, and changes of both.

Knows no pages, no lookups and no keys of the user's configuration.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lmcache.embedded.config import Backend, EmbeddedConfig
from lmcache.embedded.routing import L1_BACKEND, Routing
from lmcache.embedded.tiers import OPEN_PATIENCE_S
from lmcache.errors import ConfigError, LMCacheError, UnknownBackendError
from lmcache.storage.manager import StorageManager
from lmcache.storage.tier import Tier, TierConfig

logger = logging.getLogger(__name__)

# How long a switch waits for what is being written at that moment.
_SETTLE_S = 5.0


@dataclass(frozen=True, slots=True)
class _Open:
    backend: Backend
    index: int


class BackendSet:
    """Any thread. `routing` may be read at any time without a lock; it is replaced whole.

    `changing` is held for a whole change, I/O included: changes come one after the other, and nobody who
    serves requests takes it. Several tiers may go by one name.
    """

    def __init__(
        self,
        config: EmbeddedConfig,
        storage: StorageManager,
        has_l1: bool = True,
        on_open: Callable[[str, Tier], None] = lambda name, tier: None,
    ) -> None:
        """`storage` has the tiers of `config`, in their order. `on_open` is told of every tier that is put to use."""
        self.changing = threading.RLock()
        self.routing = Routing()
        self._told_unknown: list[str] = []
        self._storage = storage
        self._has_l1 = has_l1
        self._on_open = on_open
        self._drain_timeout_s = config.drain_timeout_s
        self._wanted = config.backends
        tiers = storage.tiers()
        self._open = [_Open(backend, tier.index) for backend, tier in zip(config.backends, tiers, strict=True)]
        for name, tier in self.tiers():
            on_open(name, tier)
        self.change(**routing_of(config))
        self._warn_of_unknown()

    # How they take part

    def change(self, **changes: Any) -> None:
        """Replace fields of the routing; every tier goes by it when this returns."""
        with self.changing:
            self.routing = dataclasses.replace(self.routing, **changes)
            for entry in self._open:
                self._route(entry)

    def settle(self) -> None:
        """Wait a while for what is being written to tiers that take nothing now."""
        if not self._storage.stores.wait_until_still(_SETTLE_S):
            logger.warning("a tier is still writing an object that it was given before")

    def _route(self, entry: _Open) -> None:
        route = self.routing.tier(entry.backend.name)
        self._storage.route(entry.index, dataclasses.replace(route, position=self._position(entry.backend)))

    def _position(self, backend: Backend) -> int:
        """Its place in the order of search; what is not asked for any more comes last."""
        names = [wanted.name for wanted in self._wanted]
        return names.index(backend.name) if backend.name in names else len(names)

    def _warn_of_unknown(self) -> None:
        """A location that is nowhere takes nothing, and whoever named it may have meant another."""
        locations = set(self.routing.retrieve_locations or ())
        if self.routing.store_location is not None:
            locations.add(self.routing.store_location)
        unknown = sorted(locations - {L1_BACKEND, *self.names()})
        is_new, self._told_unknown = unknown != self._told_unknown, unknown
        if unknown and is_new:
            logger.warning(
                "retrieve_locations or store_location name %s; there are: %s",
                ", ".join(unknown), ", ".join(self.names()),
            )  # fmt: skip

    def bypass(self, name: str, is_bypassed: bool) -> bool:
        """Take a backend out, or back in; whether it was out. Raises UnknownBackendError."""
        with self.changing:
            was_bypassed = name in self.routing.bypassed
            if not was_bypassed:
                self._check_known(name)
            bypassed = self.routing.bypassed | {name} if is_bypassed else self.routing.bypassed - {name}
            self.change(bypassed=bypassed)
            self.settle()
            return was_bypassed

    def bypassed(self) -> list[str]:
        return sorted(self.routing.bypassed)

    # Which there are

    def names(self) -> list[str]:
        """Each once, in the order of search."""
        tier_names = dict.fromkeys(entry.backend.name for entry in list(self._open))
        return [*((L1_BACKEND,) if self._has_l1 else ()), *tier_names]

    def tiers(self, name: str | None = None) -> list[tuple[str, Tier]]:
        """Those of that name, or all, in the order of search."""
        by_index = {tier.index: tier for tier in self._storage.tiers()}
        return [
            (entry.backend.name, by_index[entry.index])
            for entry in list(self._open)
            if entry.index in by_index and name in (None, entry.backend.name)
        ]

    def classes(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """Name and class of tiers, in the order of search; `names` None: of all."""
        wanted = None if names is None else set(names)
        return {
            name: tier.adapter.class_name for name, tier in self.tiers() if wanted is None or name in wanted
        }  # fmt: skip

    def _check_known(self, name: str) -> None:
        if name not in self.names():
            raise UnknownBackendError(f"Backend {name!r} not found. Available: {self.names()}")

    def _check_closable(self, name: str) -> None:
        self._check_known(name)
        if name == L1_BACKEND:
            raise ConfigError(
                f"{L1_BACKEND} cannot be closed: objects pass through it; bypass it, or switch the hot cache off"
            )

    # Open and close

    def close(self, name: str) -> None:
        """Raises UnknownBackendError; ConfigError for L1."""
        with self.changing:
            self._check_closable(name)
            for entry in [entry for entry in self._open if entry.backend.name == name]:
                self._close(entry)

    def create(self) -> dict[str, str]:
        """Open those that are asked for and not there; name and class of the new ones. Raises ConfigError."""
        with self.changing:
            is_open = {entry.backend.name for entry in self._open}
            missing = [backend for backend in self._wanted if backend.name not in is_open]
            for backend in missing:
                self._add(backend)
            return self.classes(backend.name for backend in missing)

    def recreate(self, name: str) -> dict[str, str]:
        """Open it anew by the configuration of now; one that cannot be made leaves the old one at work.
        Raises UnknownBackendError, ConfigError."""
        with self.changing:
            self._check_closable(name)
            wanted = [backend for backend in self._wanted if backend.name == name]
            if not wanted:
                raise ConfigError(f"the configuration does not ask for {name} any more: close it instead")
            entries = [entry for entry in self._open if entry.backend.name == name]
            self._exchange(entries, wanted)
            return self.classes((name,))

    def check(self, config: EmbeddedConfig) -> None:
        """Raises ConfigError where a backend that is new in it cannot be made."""
        for backend in config.backends:
            if backend not in self._wanted:
                with _named(backend):
                    self._storage.check_adapter(backend.adapter)

    def follow(self, config: EmbeddedConfig) -> None:
        """Apply what a changed configuration asks for otherwise than the one before; what cannot be made is told,
        and what runs goes on. What an operator closed stays closed, unless it is asked for otherwise now."""
        with self.changing:
            backends = config.backends
            before, self._wanted = self._wanted, backends
            self._storage.tier_config = TierConfig(breaker=config.breaker)
            gone = [backend for backend in before if backend not in backends]
            new = [backend for backend in backends if backend not in before]
            for name in dict.fromkeys(backend.name for backend in (*gone, *new)):
                entries = [entry for entry in self._open if entry.backend.name == name and entry.backend in gone]
                try:
                    self._exchange(entries, [backend for backend in new if backend.name == name])
                except LMCacheError as error:
                    logger.error("%s stays as it is: %s", name, error)
            for entry in self._open:  # the order of search may be another one
                self._route(entry)
            self._sort()
            self._warn_of_unknown()

    def _exchange(self, entries: Sequence[_Open], wanted: Sequence[Backend]) -> None:
        """Replace these tiers by those. Raises ConfigError."""
        for entry, backend in zip(entries, wanted, strict=False):
            self._replace(entry, backend)
        for backend in wanted[len(entries) :]:
            self._add(backend)
        for entry in entries[len(wanted) :]:
            self._close(entry)

    def _add(self, backend: Backend) -> None:
        route = dataclasses.replace(self.routing.tier(backend.name), position=self._position(backend))
        with _named(backend):
            index = self._storage.add_adapter(backend.adapter, route)
        self._open.append(_Open(backend, index))
        self._tell_opened(index)
        self._sort()
        logger.info("%s is in use now", backend.name)

    def _replace(self, entry: _Open, backend: Backend) -> None:
        with _named(backend):
            index = self._storage.replace_adapter(entry.index, backend.adapter, self._drain_timeout_s)
        self._open[self._open.index(entry)] = _Open(backend, index)
        self._tell_opened(index)
        logger.info("%s was opened anew", backend.name)

    def _tell_opened(self, index: int) -> None:
        for name, tier in self.tiers():
            if tier.index == index:
                self._on_open(name, tier)
                tier.wait_until_tried(OPEN_PATIENCE_S)

    def _close(self, entry: _Open) -> None:
        self._open.remove(entry)
        self._storage.remove_adapter(entry.index, self._drain_timeout_s)
        logger.info("%s was closed", entry.backend.name)

    def _sort(self) -> None:
        self._open = sorted(self._open, key=lambda entry: self._position(entry.backend))


@contextmanager
def _named(backend: Backend) -> Iterator[None]:
    """What is wrong with it is said with its name."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{backend.name}: {error}") from error


def routing_of(config: EmbeddedConfig) -> dict[str, object]:
    """The fields of a routing that a configuration decides."""
    locations = config.retrieve_locations
    return {
        "keeps_l1": config.keeps_l1,
        "retrieve_locations": None if locations is None else frozenset(locations),
        "store_location": config.store_location,
    }
