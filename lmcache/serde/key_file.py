"""Keys for encryption in a text file: one `<key id> <key in hex or base64>` a line, the first is used to encrypt.

The file is read again when it has changed, so that keys are rotated by replacing it.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import threading
from dataclasses import dataclass

from lmcache.errors import ConfigError

logger = logging.getLogger(__name__)

KEY_BYTES = (16, 24, 32)
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FILE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Key:
    key_id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"Key({self.key_id!r})"


class KeyFile:
    """Thread-safe. A file that becomes unreadable or wrong is logged, and the keys before it stay in force."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError."""
        self._path = path
        self._mutex = threading.Lock()
        self._stamp = self._look()
        self._keys = self._read()
        if self._stamp is not None and self._stamp[-1] & 0o007:
            logger.warning("every user of this machine may read the keys in %s", path)

    def current(self) -> Key:
        """The key to encrypt with."""
        self._refresh()
        return next(iter(self._keys.values()))

    def find(self, key_id: str) -> Key | None:
        self._refresh()
        return self._keys.get(key_id)

    @property
    def num_keys(self) -> int:
        return len(self._keys)

    def _refresh(self) -> None:
        stamp = self._look()
        if stamp == self._stamp:
            return
        try:
            keys = self._read()
        except ConfigError as error:
            logger.error("the keys of before stay in force: %s", error)
            keys = self._keys
        else:
            logger.info("read the keys in %s again: %s", self._path, ", ".join(keys))
        with self._mutex:
            self._keys, self._stamp = keys, stamp

    def _look(self) -> tuple[int, ...] | None:
        """What differs when the file was changed; None: it is not there."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode

    def _read(self) -> dict[str, Key]:
        try:
            with open(self._path, "rb") as file:
                text = file.read(_FILE_BYTES_MAX).decode("ascii")
        except OSError as error:
            raise ConfigError(f"key file {self._path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"key file {self._path} is not plain text") from error
        return _parse(text, self._path)


def _parse(text: str, path: str) -> dict[str, Key]:
    """The keys in their order. Raises ConfigError, which never quotes a key."""
    keys: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split("#", 1)[0].split()
        if not fields:
            continue
        where = f"key file {path}, line {number}"
        if len(fields) != 2:
            raise ConfigError(f"{where}: must be a key id and a key in hex or base64")
        key_id, secret = fields[0], _decode(fields[1])
        if not _KEY_ID.fullmatch(key_id):
            raise ConfigError(f"{where}: a key id has 1 to 64 letters, digits, dots, dashes or underscores")
        if secret is None:
            raise ConfigError(f"{where}: the key must be 16, 24 or 32 bytes in hex or base64")
        if key_id in keys:
            raise ConfigError(f"{where}: key id {key_id!r} is there twice")
        keys[key_id] = Key(key_id, secret)
    if not keys:
        raise ConfigError(f"key file {path} holds no key")
    return keys


def _decode(text: str) -> bytes | None:
    """Hex first: the three lengths differ between the two, so that neither can be taken for the other."""
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) in KEY_BYTES:
        return secret
    try:
        secret = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return secret if len(secret) in KEY_BYTES else None
