"""Warnings that would come again with every request, said once each. Knows nobody who warns."""

from __future__ import annotations

import logging

_TEXTS_MAX = 1000


class SaidOnce:
    """Past a bound of different texts it says nothing more: they hold what requests brought."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._texts: set[str] = set()

    def warn(self, text: str) -> None:
        if text not in self._texts and len(self._texts) < _TEXTS_MAX:
            self._texts.add(text)
            self._logger.warning("%s", text)
