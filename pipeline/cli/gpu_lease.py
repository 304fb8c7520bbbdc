"""GPU leases: each job of a sweep on one machine takes a GPU, while enough are free.

A lease is a file lock, so a job that dies releases its GPU.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.common.locks import locked


@contextmanager
def leased(names: Sequence[str], folder: Path | None = None) -> Iterator[int]:
    """Hold the first free GPU while the block runs and yield its index.

    When all are taken, one is shared. `names` are unique on this machine; all jobs share the lock
    `folder`, by default one per user.
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
    """Return a unique name for each visible GPU."""
    import torch

    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [str(getattr(gpu, "uuid", position)) for position, gpu in enumerate(devices)]
