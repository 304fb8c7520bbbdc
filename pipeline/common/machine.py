"""Resources that this process may use: CPU cores, memory, shared memory, local disks."""

import os
import shutil
import sys
from functools import cache
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
"""Mount point of shared memory on Linux."""


def cores() -> int:
    """Return the number of CPU cores this process may use; all cores on macOS."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def take_share(index: int, count: int) -> int:
    """Restrict this process to part `index` of `count` of its CPU cores; return their number."""
    share = max(1, cores() // count)
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, mine[index * share :][:share] or mine)
    return share


def shared_memory() -> int | None:
    """Return the free bytes of shared memory; 0 if unavailable, None if unlimited.

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
    """Return whether a file is known to be on a local disk or in memory."""
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
    """Return the available memory in bytes; at most the limit of the container."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError, StopIteration):
        return free  # not Linux, or no limit
