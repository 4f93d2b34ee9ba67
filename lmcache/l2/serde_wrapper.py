"""A serde around an adapter: what it stores is encoded, what it loads is decoded. Knows neither's inside.

What it gives to the adapter begins with a header of its own, which names the serde, its
parameters and the length of the object, and is as long as it takes to make the whole odd. No KV
object has an odd length, so that an adapter without the serde never takes an encoded object for KV.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmcache.core.keys import ObjectKey
from lmcache.errors import ConfigError, CorruptObjectError
from lmcache.l2.base import L2Adapter, Loaded, Source, StoreStatus
from lmcache.l2.forwarding import ForwardingL2Adapter
from lmcache.serde.base import Serde
from lmcache.serde.registry import serde_module

_MAGIC = b"LMCSRD"
_VERSION = 1
# magic, version, flags, header bytes, length of the object, lengths of name and parameters
_FIXED = struct.Struct("<6sBBIQHI")
_LOSSY, _AS_IT_IS = 1, 2
_OBJECT_BYTES_MAX = 1 << 33


@dataclass(frozen=True, slots=True)
class SerdeSpec:
    """One configured serde; `settings` is the `Config` of its module."""

    type: str
    settings: object


@dataclass(frozen=True, slots=True)
class _Header:
    serde: str
    parameters: Mapping[str, object]
    object_bytes: int
    is_lossy: bool
    is_as_it_is: bool  # the serde could make nothing of it


class SerdeL2AdapterWrapper(ForwardingL2Adapter):
    """To operators it is the adapter inside, which says how it is wrapped."""

    def __init__(self, inner: L2Adapter, serde: Serde) -> None:
        super().__init__(inner)
        self._serde = serde

    def store(self, key: ObjectKey, source: Source) -> StoreStatus:
        content = self._encode(key, source)
        # The copy is ours: if the source was intact after it was read, the copy stays so.
        if not source.is_intact():
            return StoreStatus.GONE
        return self.inner.store(key, Source(memoryview(content), f"serde {self._serde.name}"))

    def _encode(self, key: ObjectKey, source: Source) -> bytes:
        encoded = self._serde.encode(source.data, source.layout, key)
        if encoded is None:
            header = _Header(self._serde.name, {}, len(source.data), False, True)
            return _join(header, source.data)
        header = _Header(self._serde.name, encoded.parameters, len(source.data), self._serde.is_lossy, False)
        return _join(header, encoded.payload)

    def load(self, key: ObjectKey, target: memoryview) -> Loaded:
        content = self.inner.load_whole(key)
        try:
            header, payload = _split(content, self._serde.name)
            if header.object_bytes != len(target):
                raise CorruptObjectError(f"it has {header.object_bytes} bytes where {len(target)} were expected")
            self._decode(key, header, payload, target)
        except CorruptObjectError as error:
            self.inner.discard(key, error)
            raise
        return Loaded(len(target), header.is_lossy)

    @property
    def is_lossy(self) -> bool:
        return self._serde.is_lossy or self.inner.is_lossy

    def load_whole(self, key: ObjectKey) -> memoryview:
        content = self.inner.load_whole(key)
        try:
            header, payload = _split(content, self._serde.name)
            if header.is_as_it_is:
                return payload
            target = memoryview(bytearray(header.object_bytes))
            self._decode(key, header, payload, target)
        except CorruptObjectError as error:
            self.inner.discard(key, error)
            raise
        return target

    def _decode(self, key: ObjectKey, header: _Header, payload: memoryview, target: memoryview) -> None:
        if header.is_as_it_is:
            target[:] = payload
        else:
            self._serde.decode(payload, header.parameters, target, key)

    def report_status(self) -> dict[str, object]:
        status = self.inner.report_status()
        inside = status.get("serdes")
        serdes = [self._serde.report(), *(inside if isinstance(inside, list) else [])]
        return {**status, "serde_wrapped": True, "serdes": serdes}


def _join(header: _Header, payload: bytes | bytearray | memoryview) -> bytes:
    name = header.serde.encode()
    parameters = json.dumps(header.parameters, separators=(",", ":")).encode()
    size = _FIXED.size + len(name) + len(parameters)
    size += (size + len(payload) + 1) % 2
    flags = _LOSSY * header.is_lossy | _AS_IT_IS * header.is_as_it_is
    fixed = _FIXED.pack(_MAGIC, _VERSION, flags, size, header.object_bytes, len(name), len(parameters))
    return b"".join([(fixed + name + parameters).ljust(size, b"\0"), payload])


def _split(content: memoryview, serde: str) -> tuple[_Header, memoryview]:
    """The header and what follows it. Raises CorruptObjectError, also where another serde wrote it."""
    if len(content) < _FIXED.size or content[: len(_MAGIC)] != _MAGIC:
        raise CorruptObjectError(f"it was stored without the serde {serde}")
    _, version, flags, size, object_bytes, name_bytes, parameter_bytes = _FIXED.unpack_from(content)
    start = _FIXED.size + name_bytes
    is_sane = start + parameter_bytes <= size <= len(content) and object_bytes <= _OBJECT_BYTES_MAX
    if version != _VERSION or not is_sane:
        raise CorruptObjectError("its serde header is damaged, or of another version")
    try:
        name = bytes(content[_FIXED.size : start]).decode()
        parameters = json.loads(bytes(content[start : start + parameter_bytes]))
    except ValueError as error:
        raise CorruptObjectError(f"its serde header is damaged: {error}") from error
    if name != serde:
        raise CorruptObjectError(f"it was stored through the serde {name!r}, not {serde!r}")
    header = _Header(name, parameters, object_bytes, bool(flags & _LOSSY), bool(flags & _AS_IT_IS))
    payload = content[size:]
    if not isinstance(parameters, dict) or (header.is_as_it_is and len(payload) != object_bytes):
        raise CorruptObjectError("its serde header does not fit what follows")
    return header, payload


def wrap(adapter: L2Adapter, specs: Sequence[SerdeSpec]) -> L2Adapter:
    """The adapter inside these serdes; the first of them is the first to see what is stored. Raises ConfigError."""
    if type(adapter).load_whole is L2Adapter.load_whole:
        raise ConfigError(f"a serde cannot be put around {adapter.class_name}: it does not implement load_whole")
    serdes: list[Serde] = [serde_module(spec.type).make(spec.settings) for spec in specs]
    for serde in serdes[1:]:
        if serde.is_lossy:
            raise ConfigError(f"serde {serde.name} is lossy and must come first: behind another it sees no KV values")
    for serde in reversed(serdes):
        adapter = SerdeL2AdapterWrapper(adapter, serde)
    return adapter
