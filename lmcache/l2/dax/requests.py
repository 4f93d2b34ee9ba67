"""The fields of each reconfiguration, checked: what an operator sent through whatever door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmcache.core.sizes import parse_size
from lmcache.errors import ReconfigureError

REMOVE_MODES = ("migrate", "evict", "drain")
RESIZE_MODES = ("migrate", "evict")


@dataclass(frozen=True, slots=True)
class AddRequest:
    device_path: str
    size_bytes: int

    @classmethod
    def parse(cls, payload: Mapping[str, object]) -> AddRequest:
        """Raises ReconfigureError."""
        _only(payload, "add", "device_path", "size")
        return cls(_path(payload), _size(payload))


@dataclass(frozen=True, slots=True)
class RemoveRequest:
    """`force`: although keys are locked or slots are being read."""

    device_path: str
    mode: str
    force: bool

    @classmethod
    def parse(cls, payload: Mapping[str, object]) -> RemoveRequest:
        _only(payload, "remove", "device_path", "mode", "force")
        return cls(_path(payload), _mode(payload, REMOVE_MODES), _force(payload))


@dataclass(frozen=True, slots=True)
class ResizeRequest:
    device_path: str
    size_bytes: int
    mode: str
    force: bool

    @classmethod
    def parse(cls, payload: Mapping[str, object]) -> ResizeRequest:
        _only(payload, "resize", "device_path", "size", "mode", "force")
        return cls(_path(payload), _size(payload), _mode(payload, RESIZE_MODES), _force(payload))


def _only(payload: Mapping[str, object], operation: str, *names: str) -> None:
    unknown = sorted(set(payload) - set(names))
    if unknown:
        text = f"invalid DAX hotplug {operation} request: unknown field {', '.join(unknown)}"
        raise ReconfigureError(400, f"{text} (there are: {', '.join(names)})")


def _path(payload: Mapping[str, object]) -> str:
    path = payload.get("device_path")
    if not isinstance(path, str) or not path.strip():
        raise ReconfigureError(400, "device_path must be a text that is not empty")
    return path.strip()


def _size(payload: Mapping[str, object]) -> int:
    try:
        return parse_size(payload.get("size"))
    except ValueError as error:
        raise ReconfigureError(400, str(error)) from error


def _mode(payload: Mapping[str, object], modes: tuple[str, ...]) -> str:
    mode = payload.get("mode", modes[0])
    if mode not in modes:
        raise ReconfigureError(400, f"mode must be one of {', '.join(modes)} (got {mode!r})")
    return str(mode)


def _force(payload: Mapping[str, object]) -> bool:
    force = payload.get("force", False)
    if not isinstance(force, bool):
        raise ReconfigureError(400, f"force must be true or false (got {force!r})")
    return force
