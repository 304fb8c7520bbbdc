"""Leases: jobs of a sweep on one machine take a GPU each, as long as there are enough.

A lease is a lock on a file, so that a job that dies gives its GPU back.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.common.locks import locked


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
    with ExitStack() as held:
        for position, name in enumerate(names):
            try:
                held.enter_context(locked(folder / f"gpu-{name}.lock"))
            except BlockingIOError:
                continue
            yield position
            return
    yield os.getpid() % len(names)


def gpu_names() -> list[str]:
    """Return what tells the GPUs that this process sees apart; empty without any."""
    import torch

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [str(getattr(gpu, "uuid", position)) for position, gpu in enumerate(found)]
