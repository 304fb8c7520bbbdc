"""A byte-level fuzzer of archives: a few bytes of one file change, and a child that may die reads
everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import select
import shutil
import signal
from enum import StrEnum
from pathlib import Path

import numpy as np

from pipeline.archive.reader import Archive
from pipeline.archive.verify import verify
from pipeline.foundation.errors import FeaturemapsError
from tests.planting import seal_text, sealed

CPU_SECONDS, WALL_SECONDS = 10, 600  # a busy machine is no hang


class Mode(StrEnum):
    """How the changed archive meets its reader."""

    DAMAGED = "damaged"  # as a bad disk leaves it
    HOSTILE = "hostile"  # every digest made anew, as somebody who means it would
    UNCHECKED = "unchecked"  # opened with check=False


def digest_of_everything(path: Path, *, check: bool) -> str:
    """Read whatever an archive offers; return a digest of it."""
    digest = hashlib.sha256()

    def add(array: object) -> None:
        values = np.asarray(array)
        digest.update(repr((values.dtype.str, values.shape)).encode())
        digest.update(np.ascontiguousarray(values).tobytes())

    with Archive.open(path, check=check) as archive:
        digest.update(repr(list(archive.samples)).encode())
        for name, weights in archive.filters.items():
            digest.update(name.encode())
            add(weights)
        for row in range(len(archive)):
            add(archive.image(row))
        for layer in archive.layers.values():
            add(layer[:])
            add(layer[2, 0])
            add(layer.sample_max)
            add(layer.sample_mean)
            digest.update(repr(layer.rounding).encode())
            for name, figure in layer.statistics.items():
                digest.update(name.encode())
                add(figure)
    return digest.hexdigest()


def fuzz(archive: Path, whole: str, place: Path, seed: int, mode: Mode) -> str:
    """Return what reading a changed copy of an archive, whose digest is `whole`, ended in.

    `unharmed`, `refused`, `other data`, or what must never be: `signal …`, `hang`, `foreign …`.
    """
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(archive, place)
    _change(place, random.Random(seed), mode)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _read(place, mode, writing, whole)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], WALL_SECONDS)
    text = os.read(reading, 4096).decode() if ready else ""
    if not ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reading)
    code = os.waitstatus_to_exitcode(status)
    if not ready or code == -signal.SIGXCPU:
        return "hang"
    return f"signal {signal.Signals(-code).name}" if code < 0 else text


def _change(place: Path, chance: random.Random, mode: Mode) -> None:
    files = [place / "archive.h5", *sorted((place / "shards").glob("*.h5"))]
    path = chance.choice(files)
    pristine = path.read_bytes()
    content = bytearray(pristine)
    for _ in range(chance.randint(1, 8)):
        head = chance.random() < 0.7  # structure stands before data, mostly
        at = chance.randrange(min(len(content), 8192) if head else len(content))
        content[at] = chance.randrange(256)
    path.write_bytes(content)
    if mode is not Mode.HOSTILE:
        return
    digest = hashlib.sha256(content).hexdigest()
    if path.name != "archive.h5":  # its seal is made anew
        said = seal_text(pristine)
        content, digest = sealed(bytes(content[: said["size"]]), said)  # type: ignore[misc]
        path.write_bytes(content)
    complete = json.loads((place / "COMPLETE.json").read_text())
    complete["files"][path.relative_to(place).as_posix()] = digest
    (place / "COMPLETE.json").write_text(json.dumps(complete))


def _read(place: Path, mode: Mode, writing: int, whole: str) -> None:
    """Be the child: read, answer, leave."""
    try:
        import faulthandler

        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        try:
            found = digest_of_everything(place, check=mode is not Mode.UNCHECKED)
            if mode is Mode.DAMAGED:
                verify(place)
            answer = "unharmed" if found == whole else "other data"
        except FeaturemapsError:
            answer = "refused"
        except BaseException as error:  # noqa: BLE001 - what is looked for
            answer = f"foreign {type(error).__name__}: {error}"
        os.write(writing, answer.encode()[:4000])
    finally:
        os._exit(0)
