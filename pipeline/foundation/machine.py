"""The machine: what of it this process may use, on every system that featuremaps runs on."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps the memory that processes share."""


def cores() -> int:
    """Return how many CPU cores this process may use; macOS has no affinity, there it is all."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def shared_memory() -> int | None:
    """Return the free bytes that processes can share; 0 where there are none, None for no limit.

    Containers often mount a small `/dev/shm`, or none.
    """
    if sys.platform != "linux":
        return None
    if not os.access(SHARED_MEMORY, os.W_OK):
        return 0
    return shutil.disk_usage(SHARED_MEMORY).free
