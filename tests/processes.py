"""Start the command line in a process of its own, to be killed, stopped or starved."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import IO

import torch

from pipeline.cli import main
from tests.conftest import REPOSITORY

SLOW = (
    "extract", "model=tiny", "dataset=synthetic", "dataset.samples=48", "dataset.height=160",
    "dataset.width=160", "loader.batch_size=2", "storage.shard_samples=4", "device=cpu",
)  # fmt: skip


class Forked:
    """A fork of this process that carries out a command line: what it needs is loaded already.

    It has a process group of its own, and the part of `subprocess.Popen` that tests need.
    """

    def __init__(self, arguments: tuple[str, ...]) -> None:
        pipes = [os.pipe(), os.pipe()]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
            self.pid = os.fork()
        if self.pid == 0:
            try:
                _carry_out(arguments, pipes[0][1], pipes[1][1])
            finally:
                os._exit(1)
        for _, writing in pipes:
            os.close(writing)
        self.stdout, self.stderr = (os.fdopen(reading, encoding="utf-8") for reading, _ in pipes)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """Wait for its end."""
        stop = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < stop, "the process does not end"
            time.sleep(0.005)
        return self.poll() or 0

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Return what it says until its end."""
        said = ["", ""]

        def read(number: int, pipe: IO[str]) -> None:
            said[number] = pipe.read()

        pipes = enumerate((self.stdout, self.stderr))
        threads = [threading.Thread(target=read, args=item, daemon=True) for item in pipes]
        for thread in threads:
            thread.start()
        self.wait(timeout)
        for thread in threads:
            thread.join(timeout)
        self.stdout.close()
        self.stderr.close()
        return said[0], said[1]


def _carry_out(arguments: tuple[str, ...], out: int, err: int) -> None:
    os.setsid()
    for descriptor, number in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(descriptor, number)
    os.closerange(3, 256)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), encoding="utf-8", write_through=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(REPOSITORY)
    torch.set_num_threads(1)  # others' pools are not there
    sys.argv = ["featuremaps", *arguments]
    try:
        main.entry()
    except SystemExit as error:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(error.code or 0))


def start(*arguments: str) -> Forked:
    """Start the command line in a process group of its own."""
    return Forked(arguments)


def start_anew(*arguments: str, env: dict[str, str]) -> subprocess.Popen[str]:
    """Start the command line in a new interpreter."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
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


def wait_for(condition: Callable[[], bool], process: Forked) -> None:
    """Wait until `condition` holds or the process is over."""
    while not condition() and process.poll() is None:
        time.sleep(0.002)
