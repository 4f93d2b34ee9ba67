"""`LMCacheEngineConfig`: the one configuration that changes while the process runs.

Reading is an attribute access, without a mutex. A change is checked by its definition alone, is whole
or not made, and is told to those who subscribed.

One thread at a time tells subscribers, in the order of the changes and without holding the mutex; a
thread that changes a key meanwhile leaves its change to that one. So a callback may read, change,
subscribe and unsubscribe.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from lmcache.config.engine.definition import OutOfRangeError, UnparsableError
from lmcache.config.engine.definitions import _CONFIG_DEFINITIONS, EngineKeys, canonical
from lmcache.config.json_safe import make_json_safe
from lmcache.errors import ConfigChangeError, ConfigError

logger = logging.getLogger(__name__)

UNKNOWN = "Unknown config"
NOT_MUTABLE = "Config is not mutable at runtime"
FAILED = "Failed to set config value"
# Far more than calls can be in flight: only a subscriber that never returns lets so many wait.
_PENDING_MAX = 1000


@dataclass(frozen=True, slots=True)
class Change:
    """One key was given another value. Values may hold passwords."""

    key: str
    old: object = field(repr=False)
    new: object = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Subscription:
    """`keys` None: all."""

    keys: frozenset[str] | None
    callback: Callable[[Change], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Check:
    keys: frozenset[str]
    check: Callable[[LMCacheEngineConfig], None]


class LMCacheEngineConfig(EngineKeys):
    """Made by `loading.load_engine_config`. `values` are converted; missing ones get their default."""

    def __init__(self, values: Mapping[str, object]) -> None:
        defaults = {name: definition.default for name, definition in _CONFIG_DEFINITIONS.items()}
        super().__init__(defaults | dict(values))
        self._mutex = threading.Lock()
        self._subscriptions: tuple[_Subscription, ...] = ()
        self._checks: tuple[_Check, ...] = ()
        # Held from the checks of a change until it is made.
        self._changing = threading.Lock()
        self._pending: deque[Change] = deque()
        self._is_telling = False

    def get(self, key: str) -> object:
        """The value of a key or alias. Raises ConfigError for an unknown one."""
        return self.__dict__[_known(key)]

    def set(self, key: str, value: object) -> object:
        """The value as it is kept now. Raises ConfigChangeError with the documented reason."""
        updated, errors = self.set_all({key: value})
        if errors:
            raise errors[key]
        return updated[key]

    def set_all(self, values: Mapping[str, object]) -> tuple[dict[str, object], dict[str, ConfigChangeError]]:
        """What is kept now, and why the rest is not. All together where that works, since values may only make sense
        together; else each by itself, in whichever order lets them in.

        Subscribers have been told when it returns, unless another thread is telling them at this moment.
        A key that has this value already is no change.
        """
        wanted: dict[str, tuple[str, object]] = {}
        errors: dict[str, ConfigChangeError] = {}
        for key, value in values.items():
            try:
                wanted[key] = self._convert(key, value)
            except ConfigChangeError as error:
                errors[key] = error
        with self._changing:
            refused = self._keep(wanted)
        self._tell()
        return {key: new for key, (_, new) in wanted.items() if key not in refused}, errors | refused

    def _keep(self, wanted: Mapping[str, tuple[str, object]]) -> dict[str, ConfigChangeError]:
        """Make these changes, by the keys they were asked by; why some could not be."""
        try:
            self._change(dict(wanted.values()))
        except ConfigChangeError as error:
            against_all = dict.fromkeys(wanted, error)
        else:
            return {}
        left = dict(wanted)
        while len(wanted) > 1:
            refused: dict[str, ConfigChangeError] = {}
            for key, (name, new) in left.items():
                try:
                    self._change({name: new})
                except ConfigChangeError as error:
                    refused[key] = error
            if len(refused) in (0, len(left)):
                return refused if len(refused) < len(wanted) else against_all
            left = {key: left[key] for key in refused}
        return against_all

    @staticmethod
    def _convert(key: str, value: object) -> tuple[str, object]:
        """The canonical name, and the value as it would be kept. Raises ConfigChangeError."""
        name = canonical(key)
        definition = _CONFIG_DEFINITIONS.get(name)
        if definition is not None and not definition.mutable:
            raise ConfigChangeError(NOT_MUTABLE, f"{key} is fixed at the start")
        if definition is None:
            raise ConfigChangeError(UNKNOWN, f"there is no key {key!r}")
        try:
            new = definition.convert(name, value)
        except (UnparsableError, OutOfRangeError) as error:
            raise ConfigChangeError(FAILED, str(error)) from error
        if definition.no_effect and definition.asks(new):
            logger.warning("%s has no effect: %s", key, definition.no_effect)
        return name, new

    def subscribe(self, keys: Iterable[str] | None, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Have `callback` called after every change of one of these keys (None: of any). Returns the way to end it,
        which may be called again; a call that has begun by then still runs.

        The callback runs in the thread that changes, and must not wait for another that does.
        """
        wanted = None if keys is None else _all_known(keys)
        subscription = _Subscription(wanted, callback)
        with self._mutex:
            self._subscriptions = (*self._subscriptions, subscription)

        def unsubscribe() -> None:
            with self._mutex:
                self._subscriptions = tuple(each for each in self._subscriptions if each is not subscription)

        return unsubscribe

    def check(self, keys: Iterable[str], check: Callable[[LMCacheEngineConfig], None]) -> Callable[[], None]:
        """Have every change of one of these keys looked at before it is made: `check` is given the configuration as
        it would be, and raises ConfigError to refuse it. Returns the way to end it.

        It runs in the thread that changes, and must change nothing here.
        """
        asked = _Check(_all_known(keys), check)
        with self._mutex:
            self._checks = (*self._checks, asked)

        def end() -> None:
            with self._mutex:
                self._checks = tuple(each for each in self._checks if each is not asked)

        return end

    def as_dict(self, names: Iterable[str] | None = None) -> dict[str, object]:
        """Keys and values for JSON, without secrets; unknown names are left out. None: every key."""
        asked = list(_CONFIG_DEFINITIONS) if names is None else list(names)
        values = {name: self.__dict__[canonical(name)] for name in asked if canonical(name) in _CONFIG_DEFINITIONS}
        return cast("dict[str, object]", make_json_safe(values))

    def _change(self, values: Mapping[str, object]) -> None:
        """All of them or none. Raises ConfigChangeError."""
        new = {name: value for name, value in values.items() if self.__dict__[name] != value}
        self._ask(new)
        with self._mutex:
            if len(self._pending) + len(new) > _PENDING_MAX:
                raise ConfigChangeError(FAILED, "components do not follow earlier changes")
            for name, value in new.items():
                self._pending.append(Change(name, self.__dict__[name], value))
                self.__dict__[name] = value

    def _ask(self, new: Mapping[str, object]) -> None:
        """Whether anybody is against it."""
        asked = [each for each in self._checks if not each.keys.isdisjoint(new)]
        if not asked:
            return
        candidate = LMCacheEngineConfig({name: self.__dict__[name] for name in _CONFIG_DEFINITIONS} | dict(new))
        for each in asked:
            try:
                each.check(candidate)
            except ConfigError as error:
                raise ConfigChangeError(FAILED, str(error)) from error

    def _tell(self) -> None:
        with self._mutex:
            if self._is_telling:
                return
            self._is_telling = True
        try:
            while (found := self._next_change()) is not None:
                change, told = found
                for subscription in told:
                    _call(subscription.callback, change)
        except BaseException:  # the process is told to end: leave the rest to the next change
            with self._mutex:
                self._is_telling = False
            raise

    def _next_change(self) -> tuple[Change, list[_Subscription]] | None:
        """Finding nothing and giving up the turn is one step: no change can slip in between."""
        with self._mutex:
            if not self._pending:
                self._is_telling = False
                return None
            change = self._pending.popleft()
            told = [each for each in self._subscriptions if each.keys is None or change.key in each.keys]
        return change, told


def _all_known(keys: Iterable[str]) -> frozenset[str]:
    return frozenset(_known(key) for key in keys)


def _known(key: str) -> str:
    name = canonical(key)
    if name not in _CONFIG_DEFINITIONS:
        raise ConfigError(f"there is no key {key!r}")
    return name


def _call(callback: Callable[[Change], None], change: Change) -> None:
    try:
        callback(change)
    except Exception:  # a subscriber's bug: log, tell the others
        logger.exception("a component could not follow the change of %s", change.key)
