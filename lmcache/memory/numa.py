"""Spread the pages that the calling thread takes over all NUMA nodes (Linux, by system call)."""

from __future__ import annotations

import ctypes
import pathlib
import platform

_MPOL_INTERLEAVE = 3
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}


def online_nodes(path: pathlib.Path = pathlib.Path("/sys/devices/system/node/online")) -> list[int]:
    """Node numbers as the kernel lists them, e.g. `0-1,3`; [0] where it says nothing."""
    try:
        text = path.read_text().strip()
    except OSError:
        return [0]
    nodes: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        nodes.extend(range(int(first), int(last or first) + 1))
    return nodes


def interleave_this_thread(nodes: list[int]) -> bool:
    """Set the calling thread's policy; pages it takes from a tmpfs follow. False if not possible."""
    number = _SET_MEMPOLICY.get(platform.machine())
    if number is None:
        return False
    mask = ctypes.c_ulong(sum(1 << node for node in nodes))
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(number, _MPOL_INTERLEAVE, ctypes.byref(mask), ctypes.c_ulong(8 * ctypes.sizeof(mask)))
    return bool(result == 0)
