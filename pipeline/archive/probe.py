"""Probe: a process that may die reads the structure of an HDF5 file before this one does.

HDF5 2.0 crashes on some files with a few bytes changed, and loops for ever on others. What the
probe has read to its end, this process can read; a probe that crashes, or takes more than five
seconds of CPU time, costs nobody anything.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import h5py

from pipeline.archive.structure import check_structure
from pipeline.foundation.errors import ArchiveError, one_line

_CPU_SECONDS = 5
_WALL_SECONDS = 120  # a slow network file system is no hang
_MEMORY = 4 * 2**30
_READ_WHOLE = 2**20
_FINE = "fine"


def probe(path: Path, *, virtual: bool) -> None:
    """Read the structure of a file in another process.

    Raises:
        ArchiveError: when that process died, took too long, or found the file damaged.
    """
    found = _forked(path, virtual) if sys.platform == "linux" else _started(path, virtual)
    if found != _FINE:
        raise ArchiveError(found)


def read_structure(path: Path, *, virtual: bool) -> str:
    """Check a file's structure, and read what a reader will but for most rows of large data.

    Returns:
        `fine`, or a line about the damage.
    """
    try:
        with h5py.File(path, "r") as file:
            for dataset in check_structure(file, path, virtual=virtual):
                _read(dataset)
            dict(file.attrs)
    except ArchiveError as error:
        return str(error)
    except BaseException as error:  # noqa: BLE001 - whatever HDF5's bindings raise on damage
        return f"{path}: damaged HDF5 file ({one_line(error, limit=200)})"
    return _FINE


def _read(item: h5py.Dataset) -> None:
    if item.is_scale:
        return
    if item.chunks:
        item.id.chunk_iter(lambda _info: None)
    if item.nbytes <= _READ_WHOLE or not item.shape:
        item[()]
    else:
        for row in (0, item.shape[0] - 1):
            item[row]


def _forked(path: Path, virtual: bool) -> str:
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 and later warn of forks beside threads; the child only reads, and holds
        # h5py's lock.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
        with h5py._hl.base.phil:
            child = os.fork()
            if child == 0:
                _answer(path, virtual, writing)
    os.close(writing)
    try:
        text, status = _listen(child, reading)
    finally:
        os.close(reading)
    return text or _cause(path, status)


def _answer(path: Path, virtual: bool, writing: int) -> None:
    """Be the probe: read, answer, and leave without a trace."""
    code = 1
    try:
        gc.disable()  # what belongs to the parent is not finalized here
        import faulthandler

        faulthandler.disable()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        _limit()
        os.write(writing, read_structure(path, virtual=virtual).encode()[:4000])
        code = 0
    finally:
        os._exit(code)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    memory = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 1))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or memory < hard:
        resource.setrlimit(resource.RLIMIT_AS, (memory, hard))


def _listen(child: int, reading: int) -> tuple[str, int]:
    """Return what the probe said, and its exit status."""
    parts = []
    while True:
        ready, _, _ = select.select([reading], [], [], _WALL_SECONDS)
        part = os.read(reading, 4096) if ready else b""
        if not part:
            break
        parts.append(part)
    if not ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return b"".join(parts).decode("utf-8", "replace"), os.waitstatus_to_exitcode(status)


def _cause(path: Path, status: int) -> str:
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"{path}: damaged HDF5 file (reading its structure does not end)"
    name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
    return f"{path}: damaged HDF5 file (a process that read its structure ended with {name})"


def _started(path: Path, virtual: bool) -> str:
    """Ask a process that is started anew: a fork is not safe on macOS."""
    command = [sys.executable, "-m", "pipeline.archive.probe", str(path), str(int(virtual))]
    try:
        found = subprocess.run(command, capture_output=True, timeout=_WALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return _cause(path, -signal.SIGKILL)
    return found.stdout.decode("utf-8", "replace").strip() or _cause(path, found.returncode)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 1))
    sys.stdout.write(read_structure(Path(sys.argv[1]), virtual=sys.argv[2] == "1"))
