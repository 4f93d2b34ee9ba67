"""The lookup servers of this very process. A scheduler that shares its process with its only worker, as vLLM does on
a single device, asks the worker's engine itself: two wake-ups of threads would take longer than the lookup."""

from __future__ import annotations

import os

from lmcache.embedded.lookup.base import LookupTarget

# By URL. What a process inherits from the one it was forked from is not its own.
_targets: dict[str, tuple[int, LookupTarget]] = {}


def offer(url: str, target: LookupTarget) -> None:
    """Until `withdraw`, who asks at this URL may ask the target in its own thread."""
    _targets[url] = os.getpid(), target


def withdraw(url: str) -> None:
    """Idempotent. A question that is being answered goes on."""
    _targets.pop(url, None)


def find(url: str) -> LookupTarget | None:
    pid, target = _targets.get(url, (0, None))
    return target if pid == os.getpid() else None
