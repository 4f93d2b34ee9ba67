"""Mapping pages of shared memory into this process before they are used: a first touch costs more than a copy."""

from __future__ import annotations

import ctypes

import numpy as np

# Linux 5.14 and later.
_MADV_POPULATE_WRITE = 23


def map_pages(data: np.ndarray, start: int, length: int) -> bool:
    """Map a range of a page-aligned mapping, whose memory is there already. Releases the interpreter meanwhile.

    False: this kernel cannot, and pages are mapped on first use instead.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(data.ctypes.data + start)
    return bool(libc.madvise(address, ctypes.c_size_t(length), _MADV_POPULATE_WRITE) == 0)
