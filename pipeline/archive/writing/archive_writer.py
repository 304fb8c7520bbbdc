"""A writing session: the lock, the manifest, what is left to do, and the thread that writes it.

with WritingSession.open(path, manifest, part=(0, 1), resume=True, filters={}) as session:
    for rows in ...:        # the rows of session.todo, in order
        session.put(rows)   # blocks while the disk is behind: memory stays bounded
    complete = session.finish()
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.completion import Complete, stitched
from pipeline.archive.format.manifest import Manifest, missing_shards, part_of
from pipeline.archive.format.shard_check import check_shard
from pipeline.archive.format.size_estimate import MARGIN, free_bytes, shard_bytes
from pipeline.archive.writing import lock
from pipeline.archive.writing.active_writers import sign
from pipeline.archive.writing.finalize import stitch
from pipeline.archive.writing.resume import refuse_other_identity, resumed
from pipeline.archive.writing.shard_writer import ActivationBatch, ShardWriter, remove_leftovers
from pipeline.common.arrays import Array
from pipeline.common.atomic_files import write_failures_named
from pipeline.common.errors import ArchiveBusyError, ConfigError, DiskFullError
from pipeline.common.progress import size

log = logging.getLogger(__name__)
_QUEUED_BATCHES = 2  # no more than there are sets of buffers


class ArchiveWriter:
    """The writer of one archive, or of one part of it; at most one at a time."""

    def __init__(
        self, archive: Path, manifest: Manifest, part: range, filters: Mapping[str, Array],
        *, whole: bool,
    ) -> None:  # fmt: skip
        """Use `ArchiveWriter.open`."""
        self.archive = archive
        self.manifest = manifest
        self._whole = whole
        self._filters = filters
        self.shards: dict[int, ArchiveFile] = {}  # finished, of this part
        remove_leftovers(archive, part)
        missing = set(missing_shards(archive, manifest))
        self.todo = [number for number in part if number in missing]
        for number in part:
            if number not in missing:
                shard = schema.shard_path(archive, number)
                self.shards[number] = check_shard(shard, manifest, *manifest.shards[number])
        self._rows: queue.Queue[ActivationBatch | None] = queue.Queue(maxsize=_QUEUED_BATCHES)
        self._failure: BaseException | None = None
        self._shard: ShardWriter | None = None
        self._thread = threading.Thread(target=self._write_all, name="archive-writer", daemon=True)
        # The disk's own time: syncing what is written so far, and finishing whole shards.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="archive-disk")
        self._syncing: Future[None] | None = None
        self._finishing: Future[None] | None = None

    @classmethod
    @contextmanager
    def open(
        cls,
        archive: Path,
        manifest: Manifest,
        *,
        part: tuple[int, int],
        resume: bool,
        filters: Mapping[str, Array],
        first_samples: Callable[[int], Mapping[str, Any]],
    ) -> Iterator[ArchiveWriter]:
        """Open an archive for writing: a new one, or an unfinished one of the same fingerprint.

        Args:
            archive: its folder, made if it is not there.
            manifest: what is to be written; an existing archive keeps its own shard ranges.
            part: index and count of a sharded extraction.
            resume: whether an existing archive may be continued.
            filters: weights to keep, `(filter, channel, height, width)` each.
            first_samples: see `pipeline.archive.writing.resume.resumed`.

        Raises:
            ArchiveError: when another process writes it, a finished shard is damaged, or a shard
                cannot be written.
            ConfigError: when the archive was made by something else; the message lists the
                differences.
            DiskFullError: when the disk is full.
        """
        index, count = part
        exists = (archive / schema.MANIFEST).exists()
        if exists and not resume:
            raise ConfigError(f"archive: {archive} exists and resume=false; give another archive=")
        if not exists and archive.is_dir() and not _ours(archive):
            raise ConfigError(f"archive: {archive} holds other files; give an empty or new folder")
        with write_failures_named(archive):
            (archive / schema.SHARDS).mkdir(parents=True, exist_ok=True)
        with lock.writing(archive, part=index if count > 1 else None):
            sign(archive, part)
            with write_failures_named(archive):
                stored = manifest.write_once(archive)
                if count == 1:
                    stored = resumed(archive, stored, manifest, first_samples)
            refuse_other_identity(archive, stored, manifest)
            numbers = part_of(len(stored.shards), index, count)
            session = cls(archive, stored, numbers, filters, whole=count == 1)
            try:
                yield session
            except OSError as error:
                with write_failures_named(archive):
                    raise error from None
            finally:
                session._stop()

    def count_skipped(self) -> int:
        """Return how many samples of the finished shards were skipped.

        Raises:
            ArchiveError: when a shard is damaged.
        """
        return sum(shard.text("status").count(schema.STATUS_SKIPPED)
                   for shard in self.shards.values())  # fmt: skip

    def start(self) -> None:
        """Start the writing thread; call it after the loader's workers were forked."""
        self._thread.start()

    def put(self, rows: ActivationBatch) -> None:
        """Hand over the next rows; waits while two batches are still to be written.

        Raises:
            ArchiveError, DiskFullError: when writing failed, also of rows handed over earlier.
        """
        while True:
            self._raise_failure()
            try:
                self._rows.put(rows, timeout=0.2)
            except queue.Full:
                continue
            return

    def finish(self) -> Complete | None:
        """Wait until everything is written, and complete the archive if this is all of it.

        Returns:
            What completes the archive; None after a part, whose lock must go first (`join`).

        Raises:
            ArchiveError, DiskFullError: when writing failed.
        """
        if self._thread.is_alive():
            self._rows.put(None)
            self._thread.join()
        self._raise_failure()
        return self._complete() if self._whole else None

    def join(self) -> Complete | None:
        """Complete the archive if every part has written its shards; called without a lock.

        Every part tries this at its end, after it has let go of its lock: the last one finds
        nobody else, and does it.

        Returns:
            What completes the archive; None while shards are missing or another process writes.

        Raises:
            ArchiveError, DiskFullError: when a shard of another part is damaged, or writing failed.
        """
        if missing_shards(self.archive, self.manifest):
            return None
        try:
            with lock.writing(self.archive), write_failures_named(self.archive):
                return self._complete()
        except ArchiveBusyError:
            return None

    def _complete(self) -> Complete:
        there = None if self.todo else stitched(self.archive)
        return there or stitch(self.archive, checked=self.shards)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _stop(self) -> None:
        """End the thread without finishing: the unfinished shard is dropped."""
        if self._thread.is_alive():
            with suppress(queue.Empty):
                while True:
                    self._rows.get_nowait()
            self._rows.put(None)
            self._thread.join()
        self._disk.shutdown()
        if self._shard is not None:
            self._shard.abort()

    def _check_space(self, number: int) -> None:
        """Refuse to begin a shard that will not fit.

        Raises:
            DiskFullError: when less than its size and 5 % more is free.
        """
        needed = int(shard_bytes(self.manifest, number) * MARGIN)
        if free_bytes(self.archive) < needed:
            raise DiskFullError(
                f"{self.archive}: the disk is full (the next shard needs about "
                f"{size(needed)}); finished shards are intact. Free some space and "
                "run the same command again to go on"
            )

    def _write_all(self) -> None:
        todo = iter(self.todo)
        rows: ActivationBatch | None = None
        try:
            while (rows := self._rows.get()) is not None:
                if self._shard is None:
                    number = next(todo)
                    self._check_space(number)
                    self._shard = ShardWriter(self.archive, number, self.manifest, self._filters)
                full = self._shard.write(rows)
                rows.release()
                if full:
                    self._await(self._finishing)  # at most one shard is being finished
                    self._finishing = self._disk.submit(self._finish, self._shard, number)
                    self._shard = None
                elif self._syncing is None or self._syncing.done():
                    self._await(self._syncing)
                    self._syncing = self._disk.submit(self._shard.sync)
            self._await(self._syncing)
            self._await(self._finishing)
        except BaseException as error:  # noqa: BLE001 - carried to the thread that puts the rows
            self._failure = error
            while rows is not None:  # until the other side has seen it
                rows.release()
                rows = self._rows.get()

    def _finish(self, shard: ShardWriter, number: int) -> None:
        self.shards[number] = shard.commit()

    @staticmethod
    def _await(work: Future[None] | None) -> None:
        """Wait for work of the disk thread; raises what it raised."""
        if work is not None:
            work.result()


def _ours(folder: Path) -> bool:
    known = {schema.SHARDS, schema.LOCK}
    return all(
        entry.name in known or entry.name.startswith((".", schema.LOCK))
        for entry in folder.iterdir()
    )
