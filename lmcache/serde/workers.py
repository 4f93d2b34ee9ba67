"""`max_workers`, a setting of serdes that is taken and has no effect: the threads of an adapter do this work."""

from __future__ import annotations

import logging

from lmcache.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_WORKERS = 1


def check_max_workers(value: object) -> None:
    """Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"max_workers must be a whole number of at least 1 (got {value!r})")


def tell_of_max_workers(serde: str, value: int) -> None:
    """Whoever asks for more than the default is told, where the serde is made."""
    if value != MAX_WORKERS:
        logger.warning(
            "serde %s: max_workers %d has no effect: objects are encoded and decoded by the threads of their adapter",
            serde, value,
        )  # fmt: skip
