"""Scripts of operators, run in this process with few builtins and a time limit. Knows no HTTP.

The builtins restrict what a script does by accident; they are no sandbox. A script that is
over its time ends at the next line of its own. While it is inside something it called, it is
let finish: to break off there could leave a lock taken or a structure half changed. Until it
ends it counts as abandoned.
"""

from __future__ import annotations

import asyncio
import builtins
import importlib
import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum, auto
from types import FrameType
from typing import Any

from lmcache.config.json_safe import encodable
from lmcache.config.scripts import ScriptSettings

logger = logging.getLogger(__name__)

RUNNING_MAX = 4
SUCCESS = "Script executed successfully"
_FILE_NAME = "<script>"
_BUILTINS = (print, str, int, float, list, dict, tuple, set)


class ScriptStatus(Enum):
    DONE = auto()
    FAILED = auto()
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class ScriptResult:
    """`text`: what the script said, why it failed, or why it was not run. Encodes as UTF-8."""

    status: ScriptStatus
    text: str


class ScriptRunner:
    """At most `RUNNING_MAX` scripts at once, abandoned ones included, each in a thread of its own."""

    def __init__(self, settings: Callable[[], ScriptSettings]) -> None:
        """`settings` is asked before each script."""
        self._settings = settings
        self._runs: set[_Run] = set()
        self._mutex = threading.Lock()

    @property
    def num_abandoned(self) -> int:
        """Scripts over their time that have not ended yet."""
        with self._mutex:
            return sum(run.is_expired for run in self._runs)

    async def run(self, source: bytes, app: object) -> ScriptResult:
        """The script sees `app`; the value of its variable `result` is what it says."""
        settings = self._settings()
        run = _Run(source, app, settings.allowed_imports, self._ended)
        with self._mutex:
            is_full = len(self._runs) >= RUNNING_MAX
            if not is_full:
                self._runs.add(run)
        if is_full:
            return ScriptResult(ScriptStatus.REFUSED, self._why_full())
        run.start()
        outcome = asyncio.wrap_future(run.outcome)
        try:
            done, _ = await asyncio.wait({outcome}, timeout=settings.timeout_s)
        finally:
            run.is_expired = not outcome.done()
            outcome.cancel()
        if not done:
            logger.warning("a script is over its time of %g s", settings.timeout_s)
            return ScriptResult(ScriptStatus.FAILED, f"timed out after {settings.timeout_s:g} s")
        return outcome.result()

    def _why_full(self) -> str:
        return (
            f"{RUNNING_MAX} scripts are running, no more are allowed at once "
            f"({self.num_abandoned} of them are over their time and have not ended yet)"
        )

    def _ended(self, run: _Run) -> None:
        with self._mutex:
            self._runs.discard(run)


class _ExpiredError(BaseException):
    """Raised inside a script that is over its time. Not an Exception, so that no library swallows it."""


class _Run:
    """One script and its thread. Whoever waits for `outcome` sets `is_expired` when it no longer does."""

    def __init__(
        self, source: bytes, app: object, allowed_imports: tuple[str, ...], on_end: Callable[[_Run], None]
    ) -> None:
        self.outcome: Future[ScriptResult] = Future()
        self.is_expired = False
        self._source = source
        self._app = app
        self._allowed_imports = allowed_imports
        self._on_end = on_end

    def start(self) -> None:
        self.outcome.set_running_or_notify_cancel()  # nobody can take it back from here on
        try:
            threading.Thread(target=self._run, name="lmcache-script", daemon=True).start()
        except RuntimeError as error:  # the system gives us no further thread
            self._end(ScriptResult(ScriptStatus.FAILED, str(error)))

    def _run(self) -> None:
        try:
            sys.settrace(self._trace)
            result = ScriptResult(ScriptStatus.DONE, self._execute())
        except BaseException as error:  # the root of a thread, and a script may raise SystemExit or worse
            result = ScriptResult(ScriptStatus.FAILED, _text_of(error))
        finally:
            sys.settrace(None)
        self._end(result)

    def _end(self, result: ScriptResult) -> None:
        self._on_end(self)
        self.outcome.set_result(result)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        """Follows the lines of the script itself, and of nothing that it calls."""
        if frame.f_code.co_filename != _FILE_NAME:
            return None
        if self.is_expired:
            raise _ExpiredError
        return self._trace

    def _execute(self) -> str:
        for name in self._allowed_imports:
            _import_ahead(name)
        offered = {function.__name__: function for function in _BUILTINS}
        names = {"__builtins__": {**offered, "__import__": self._guarded_import}, "app": self._app}
        own_names: dict[str, object] = {}
        exec(compile(self._source, _FILE_NAME, "exec", dont_inherit=True), names, own_names)
        return encodable(str(own_names["result"])) if "result" in own_names else SUCCESS

    def _guarded_import(self, name: str, *arguments: Any, **named: Any) -> object:
        if name not in self._allowed_imports:
            raise ImportError(f"Import of '{name}' is not allowed")
        return builtins.__import__(name, *arguments, **named)


def _import_ahead(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a module does when it is imported; the script may not need it
        logger.warning("module %s, which scripts may import, cannot be imported: %s", name, error)


def _text_of(error: BaseException) -> str:
    """The error's own text, or its type where it has none or fails to say it."""
    try:
        text = str(error)
    except BaseException:  # `__str__` is code of the script
        text = ""
    return encodable(text or type(error).__name__)
