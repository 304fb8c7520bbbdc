"""Processes that write an unfinished archive: host, speed, remaining time."""

import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pipeline.archive.format import schema
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.row_ranges import part_of
from pipeline.common.errors import one_line
from pipeline.common.locks import is_locked
from pipeline.common.places import Place
from pipeline.common.progress import duration

_LONGEST_NOTE = 4096
_MOST_PARTS = 100_000


State = Literal["running", "stopped", "finished", "not started"]
"""State of a part of an extraction."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A process that writes an archive or a part of it.

    Attributes:
        part, parts: index and count of a sharded extraction.
        state: of the process; `stopped` if its lock is free and shards are missing.
        host, pid: of the process; empty and 0 if it has not started.
        samples: number of samples of this part.
        done: number of samples in finished shards.
        rate: samples per second since the start; None before the first shard.
        seconds_left: at that rate; None if the process is not running or the rate is unknown.
    """

    part: int
    parts: int
    state: State
    host: str
    pid: int
    samples: int
    done: int
    rate: float | None
    seconds_left: float | None

    def __str__(self) -> str:
        where = f" on {one_line(self.host, limit=80)} (process {self.pid})" if self.host else ""
        part = f"part {self.part} of {self.parts}: " if self.parts > 1 else ""
        rate = f", {self.rate:.3g} samples/s" if self.rate is not None else ""
        remaining = f", {duration(self.seconds_left)} left" if self.seconds_left is not None else ""
        remedy = "; run its command again" if self.state == "stopped" else ""
        count = f"{self.done} of {self.samples} samples"
        return f"{part}{self.state}{where}, {count}{rate}{remaining}{remedy}"


@dataclass(frozen=True)
class _Note:
    """Content of a lock file."""

    path: Place
    part: int
    parts: int
    host: str
    pid: int
    signed: float


def sign(archive: Place, part: tuple[int, int]) -> None:
    """Record this process, with its part `(index, count)`, in the lock file that it holds."""
    index, count = part
    note = {"host": socket.gethostname(), "pid": os.getpid(), "index": index, "count": count}
    with suppress(OSError):  # informational only
        _lock_file(archive, index, count).write_text(json.dumps(note), encoding="utf-8")


def writers(archive: Place, manifest: Manifest, *, now: float) -> list[Writer]:
    """Return the processes of the latest extraction to an archive, ordered by part."""
    notes = list(_notes(archive))
    if not notes:
        return []
    count = max(notes, key=lambda note: note.signed).parts
    of_part = {note.part: note for note in notes if note.parts == count}
    return [_writer(archive, manifest, (i, count), of_part.get(i), now) for i in range(count)]


def _writer(
    archive: Place, manifest: Manifest, part: tuple[int, int], note: _Note | None, now: float
) -> Writer:
    numbers = part_of(len(manifest.shards), *part)
    written: dict[int, float] = {}
    for number in numbers:
        with suppress(OSError):  # missing
            written[number] = schema.shard_path(archive, number).stat().st_mtime

    def samples(of: Iterable[int]) -> int:
        return sum(manifest.shards[number][1] - manifest.shards[number][0] for number in of)

    total, done = samples(numbers), samples(written)
    state: State = "finished" if done == total else "not started"
    rate = seconds_left = None
    if note is not None:
        running = False
        with suppress(OSError):  # owned by another user
            running = is_locked(note.path)
        if running or done < total:
            state = "running" if running else "stopped"
        if recent := [number for number, at in written.items() if at > note.signed]:
            last = max(written.values())
            rate = samples(recent) / (last - note.signed)
            seconds_left = max(0.0, (total - done) / rate - (now - last)) if running else None
    return Writer(
        part=part[0], parts=part[1], state=state, samples=total, done=done,
        host=note.host if note else "", pid=note.pid if note else 0, rate=rate,
        seconds_left=seconds_left,
    )  # fmt: skip


def _lock_file(archive: Place, index: int, count: int) -> Place:
    return archive / (f"{schema.LOCK}.{index}" if count > 1 else schema.LOCK)


def _notes(archive: Place) -> Iterator[_Note]:
    for path in archive.glob(f"{schema.LOCK}*"):
        try:
            with path.open("rb") as file:
                content = json.loads(file.read(_LONGEST_NOTE))
            index, count = int(content["index"]), int(content["count"])
            if 0 <= index < count <= _MOST_PARTS and path == _lock_file(archive, index, count):
                yield _Note(
                    path, index, count, str(content["host"]), int(content["pid"]),
                    path.stat().st_mtime,
                )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            continue  # empty: held by `stitch`, or not signed yet
