"""The names table: model names, salts and roots by small ids, in an append-only file.

Each entry carries its own checksum; reading stops at the first that is torn. An id may be
given to another name once no record uses it: the later entry wins. Model, salt and root
share one id space, told apart by kind.
"""

from __future__ import annotations

import os
import pathlib
import struct
from enum import IntEnum

import xxhash

_ENTRY = struct.Struct("<QIIHH")  # xxh3 of what follows, id, reserved, kind, length
_COMPACT_BYTES_MIN = 1 << 20
_NAME_BYTES_MAX = 0xFFFF


class NameKind(IntEnum):
    MODEL = 1
    SALT = 2
    ROOT = 3


class NamesTable:
    """Ids for names, each held for as long as something uses it. One owner, not thread-safe."""

    def __init__(self, path: pathlib.Path, mode: int = 0o600) -> None:
        self._path = path
        self._mode = mode
        self._id_of: dict[tuple[NameKind, bytes], int] = {}
        self._name_of: dict[int, tuple[NameKind, bytes]] = {}
        self._uses: dict[int, int] = {}
        self._free_ids: list[int] = []
        self._next_id = 1
        self._file_bytes = 0
        self._read()
        self._descriptor = self._open()

    def _open(self) -> int:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, self._mode)
        os.fchmod(descriptor, self._mode)
        return descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    def _read(self) -> None:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        position = 0
        while position + _ENTRY.size <= len(content):
            checksum, name_id, _, kind, length = _ENTRY.unpack_from(content, position)
            end = position + _ENTRY.size + length
            body = content[position + 8 : end]
            if end > len(content) or xxhash.xxh3_64_intdigest(body) != checksum or kind not in list(NameKind):
                break
            name = content[position + _ENTRY.size : end]
            self._learn(name_id, (NameKind(kind), name))
            position = end
        self._file_bytes = position
        self._next_id = max(self._name_of, default=0) + 1

    def _learn(self, name_id: int, key: tuple[NameKind, bytes]) -> None:
        """A later entry ends both what its id meant before and the id its name had before."""
        old_name, old_id = self._name_of.get(name_id), self._id_of.get(key)
        if old_name is not None:
            del self._id_of[old_name]
        if old_id is not None and old_id != name_id:
            del self._name_of[old_id]
        self._name_of[name_id] = key
        self._id_of[key] = name_id

    def acquire(self, kind: NameKind, name: bytes) -> int:
        """The id of a name, made durable before it is returned; one more use of it."""
        key = (kind, name)
        name_id = self._id_of.get(key)
        if name_id is None:
            if len(name) > _NAME_BYTES_MAX:
                raise ValueError(f"a name may have {_NAME_BYTES_MAX} bytes (got {len(name)})")
            name_id = self._free_ids.pop() if self._free_ids else self._next_id
            self._next_id = max(self._next_id, name_id + 1)
            self._append(name_id, kind, name)
            self._id_of[key] = name_id
            self._name_of[name_id] = key
        self._uses[name_id] = self._uses.get(name_id, 0) + 1
        return name_id

    def find(self, kind: NameKind, name: bytes) -> int | None:
        """The id of a name; None while nothing uses it."""
        return self._id_of.get((kind, name))

    def acquire_id(self, name_id: int, kind: NameKind) -> bytes | None:
        """One more use of a known id (recovery); its name, or None if it is not known as that kind."""
        entry = self._name_of.get(name_id)
        if entry is None or entry[0] is not kind:
            return None
        self._uses[name_id] = self._uses.get(name_id, 0) + 1
        return entry[1]

    def release(self, name_id: int) -> None:
        uses = self._uses[name_id] - 1
        if uses:
            self._uses[name_id] = uses
            return
        del self._uses[name_id]
        del self._id_of[self._name_of.pop(name_id)]
        self._free_ids.append(name_id)

    def forget_unused(self) -> None:
        """After recovery: names that no record uses leave, and the file is written anew."""
        for name_id in [name_id for name_id in self._name_of if name_id not in self._uses]:
            del self._id_of[self._name_of.pop(name_id)]
        self._next_id = max(self._name_of, default=0) + 1
        self._free_ids = [name_id for name_id in range(1, self._next_id) if name_id not in self._name_of]
        self._compact()

    def __len__(self) -> int:
        return len(self._name_of)

    def _append(self, name_id: int, kind: NameKind, name: bytes) -> None:
        entry = _pack(name_id, kind, name)
        os.pwrite(self._descriptor, entry, self._file_bytes)
        self._file_bytes += len(entry)
        if self._file_bytes > _COMPACT_BYTES_MIN and self._file_bytes > 4 * self._live_bytes():
            self._compact(extra=(name_id, kind, name))

    def _live_bytes(self) -> int:
        return sum(_ENTRY.size + len(name) for _, name in self._name_of.values())

    def _compact(self, extra: tuple[int, NameKind, bytes] | None = None) -> None:
        entries = [_pack(name_id, kind, name) for name_id, (kind, name) in self._name_of.items()]
        if extra is not None:
            entries.append(_pack(*extra))
        content = b"".join(entries)
        temporary = self._path.with_suffix(".new")
        temporary.write_bytes(content)
        os.replace(temporary, self._path)
        os.close(self._descriptor)
        self._descriptor = self._open()
        self._file_bytes = len(content)


def _pack(name_id: int, kind: NameKind, name: bytes) -> bytes:
    entry = _ENTRY.pack(0, name_id, 0, kind, len(name)) + name
    return struct.pack("<Q", xxhash.xxh3_64_intdigest(entry[8:])) + entry[8:]
