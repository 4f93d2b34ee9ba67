"""The loop of a child process: take an order, obey, answer; between orders, do a turn of one's own work."""

from __future__ import annotations

import os
import traceback
from typing import Protocol

from lmcache.testing import control as c


class Obedient(Protocol):
    """What a child's main object must have. `is_busy`: it wants turns."""

    @property
    def is_busy(self) -> bool: ...

    def turn(self) -> None: ...

    def obey(self, order: c.Message) -> c.Answer: ...

    def stop(self, keep: bool) -> None: ...


def serve_orders(channel: c.Channel, process: Obedient) -> None:
    """Until told to quit, or until the test is gone."""
    channel.send(c.Ready(_outer_pid()))
    try:
        while True:
            order = channel.receive(0.0 if process.is_busy else None)
            if isinstance(order, c.Quit):
                process.stop(order.keep)
                channel.send(c.Done())
                return
            _serve_one(channel, process, order)
    except c.ChannelClosedError:
        process.stop(False)


def _serve_one(channel: c.Channel, process: Obedient, order: c.Message | None) -> None:
    try:
        if order is None:
            process.turn()
            return
        answer = process.obey(order)
    except c.ChannelClosedError:
        raise
    except Exception:  # the root of an order: the test shall see it
        answer = c.Failed(traceback.format_exc())
    channel.send(answer)


def _outer_pid() -> int:
    """This process as the namespace sees it that /proc was mounted in: the test's."""
    return int(os.readlink("/proc/self"))
