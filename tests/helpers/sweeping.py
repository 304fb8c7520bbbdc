"""Small sweeps, in this process or in their own."""

import io
import os
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from pipeline.cli.main import main
from tests.conftest import REPOSITORY
from tests.helpers.processes import start_background

SMALL = (
    "dataset=synthetic", "dataset.samples=4", "dataset.height=24", "dataset.width=24", "device=cpu",
    "loader.num_workers=0",
)  # fmt: skip


DRAW = ("renderers=[mean_map]", "render.num_workers=0")


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a sweep: here, or in a process of its own where a launcher starts others."""
    environment = dict(os.environ) | {"PYTHONPATH": str(REPOSITORY), "RAY_DEDUP_LOGS": "0"}
    command = ("run", "-m", *arguments, f"hydra.sweep.dir={folder}")
    if not any("launch" in word for word in arguments):
        stdout, stderr = io.StringIO(), io.StringIO()
        with redirect_stdout(stdout), redirect_stderr(stderr):
            code = main(command)
        return subprocess.CompletedProcess(command, code, stdout.getvalue(), stderr.getvalue())
    process = start_background(*command, env=environment)
    out, err = process.communicate(timeout=400)
    return subprocess.CompletedProcess(command, process.returncode, out, err)
