"""Start the command line in a process of its own, to be killed, stopped or starved."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.cli import main, sweep  # noqa: F401 - with Hydra, for the fork server
from pipeline.config.plugins import PLUGINS, kinds
from tests.conftest import REPOSITORY

for group in PLUGINS:
    kinds(group)
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.helpers.processes", "pipeline.extraction.extract"])

FOLDER = tempfile.TemporaryDirectory()
SLOW = (
    "extract", "model=tiny", "dataset=synthetic", "dataset.samples=48", "dataset.height=160",
    "dataset.width=160", "loader.batch_size=2", "storage.shard_samples=4", "device=cpu",
)  # fmt: skip


class Started:
    """A command line in a process of its own, with what tests need of `subprocess.Popen`.

    It is forked from a server that has loaded this package and carried out nothing, so that it is
    there at once and holds no state of the tests before it. It leads a process group.
    """

    def __init__(self, arguments: tuple[str, ...]) -> None:
        folder = tempfile.mkdtemp(dir=FOLDER.name)
        self._said = [Path(folder, stream) for stream in ("out", "err")]
        method = multiprocessing.get_start_method()  # not that of a fork server's process
        self._process = SERVER.Process(
            target=_carry_out, args=(arguments, dict(os.environ), self._said, method)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.exitcode

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Return what it says until its end."""
        self._process.join(timeout)
        assert self.returncode is not None, "the process does not end"
        out, err = (path.read_text(encoding="utf-8") for path in self._said)
        return out, err


def _carry_out(
    arguments: tuple[str, ...], environment: dict[str, str], said: list[Path], method: str
) -> None:
    os.setsid()
    multiprocessing.set_start_method(method, force=True)
    for path, number in zip(said, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    sys.argv = ["featuremaps", *arguments]
    main.entry()


def start(*arguments: str) -> Started:
    """Start the command line in a process group of its own."""
    return Started(arguments)


def start_background(*arguments: str, env: dict[str, str]) -> subprocess.Popen[str]:
    """Start the command line in a new interpreter."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=REPOSITORY,
        env=env,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def group_is_gone(group: int) -> None:
    """Wait until no process of a group is left."""
    for _ in range(1200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("a process of the group is still there")


def wait_for(condition: Callable[[], bool], process: Started | subprocess.Popen[str]) -> None:
    """Wait until `condition` holds or the process is over."""
    while not condition() and process.returncode is None:
        time.sleep(0.002)
