"""Start the command line in a process of its own, to be killed, stopped or starved."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from tests.conftest import REPOSITORY

SLOW = (
    "extract", "model=tiny", "dataset=synthetic", "dataset.samples=48", "dataset.height=160",
    "dataset.width=160", "loader.batch_size=2", "storage.shard_samples=4", "device=cpu",
)  # fmt: skip


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    """Start the command line in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=REPOSITORY,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until `condition` holds or the process is over."""
    while not condition() and process.poll() is None:
        time.sleep(0.002)
