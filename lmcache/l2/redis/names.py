"""Names of objects among the keys of a Redis server: `<prefix>@<object name>`, both ways."""

from __future__ import annotations

from lmcache.core.keys import ObjectKey
from lmcache.l2.object_names import key_of_name, object_name

# No name of ours comes near: all of them tell their key.
_NAME_BYTES_MAX = 1 << 20
# Braces would choose the slot: a tenant with a pair of them would lie on one node of a cluster.
_BRACES = (("{", "%7B"), ("}", "%7D"))


class Names:
    """A prefix is of plain characters (`RedisConfig`); no model's name has an `@` that could be taken for its end."""

    def __init__(self, prefix: str) -> None:
        self._start = f"{prefix}@"

    def name(self, key: ObjectKey) -> bytes:
        name = object_name(key, _NAME_BYTES_MAX)
        for brace, quoted in _BRACES:
            name = name.replace(brace, quoted)
        return (self._start + name).encode()

    def key(self, name: bytes) -> ObjectKey | None:
        """None: it is not ours."""
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return None
        if not text.startswith(self._start) or "{" in text or "}" in text:
            return None
        text = text.removeprefix(self._start)
        for brace, quoted in _BRACES:
            text = text.replace(quoted, brace)
        return key_of_name(text)

    @property
    def pattern(self) -> str:
        """What SCAN finds all of them by."""
        return f"{self._start}*"

    @property
    def never_held(self) -> tuple[bytes, bytes]:
        """Two names that no object has, in two slots of a cluster."""
        return f"{self._start}@1".encode(), f"{self._start}@2".encode()
