"""The machine: what of it this process may use, on every system that featuremaps runs on."""

from __future__ import annotations

import os
import shutil
import sys
from functools import cache
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


_NETWORKS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "fuse", "9p", "afs",
             "glusterfs", "orangefs", "virtiofs", "pvfs2")  # fmt: skip


def on_local_disk(path: Path) -> bool:
    """Tell whether a file is known to be on a disk of this machine's own, or in its memory."""
    try:
        return _is_local(path.stat().st_dev)
    except OSError:
        return False  # not Linux


@cache
def _is_local(device: int) -> bool:
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        front, _, back = line.partition(" - ")
        if front.split()[2] == number:
            return not back.startswith(_NETWORKS)
    return False


def available_memory() -> int:
    """Return the bytes of memory that are free or can be freed, as far as the system tells.

    A container's own limit counts where it is lower.
    """
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{what}").read_text() for what in ("max", "current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError, StopIteration):
        return free  # no Linux, or no limit
