"""Leases: jobs of a sweep on one machine take a GPU each, as long as there are enough.

A lease is a lock on a file, so that a job that dies gives its GPU back.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def leased(names: Sequence[str], folder: Path | None = None) -> Iterator[int]:
    """Hold one of several GPUs while the block runs; yields its position.

    The first that no other job holds; where all are taken, one is shared.

    Args:
        names: what tells each GPU from all others of this machine.
        folder: of the locks, the same for all jobs; None takes this user's.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"featuremaps-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for position, name in enumerate(names):
        descriptor = os.open(folder / f"gpu-{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        try:
            yield position
        finally:
            os.close(descriptor)  # gives the lock back
        return
    yield os.getpid() % len(names)


def gpu_names() -> list[str]:
    """Return what tells the GPUs that this process sees apart; empty without any."""
    import torch

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [str(getattr(gpu, "uuid", position)) for position, gpu in enumerate(found)]
