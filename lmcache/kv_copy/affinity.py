"""On which cores a copying thread may run."""

from __future__ import annotations

import os


def restore_affinity() -> None:
    """Engines bind the thread that starts us to one core; take the cores their parent process has too."""
    try:
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()) | os.sched_getaffinity(0))
    except OSError:
        return
