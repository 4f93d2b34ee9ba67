"""Files that hold tokens: read once at the start, with a warning where others can read them too."""

from __future__ import annotations

import logging
import pathlib
import stat

from lmcache.errors import ConfigError

logger = logging.getLogger(__name__)


def read_secret_file(path: str, setting: str) -> str:
    """The text of the file. Raises ConfigError, naming the setting."""
    file = pathlib.Path(path)
    try:
        text = file.read_text(encoding="utf-8")
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting} {path} cannot be read: {error}") from error
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("other users can read the token in %s: chmod 600 %s", path, path)
    return text
