"""Writer of an archive: the lock, the manifest, the unfinished shards and the writing thread.

with ArchiveWriter.open(path, manifest, part=(0, 1), resume=True, ...) as writer:
    for rows in ...:       # the rows of writer.todo, in order
        writer.put(rows)   # blocks while the disk is behind: memory stays bounded
    complete = writer.finish()
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.completion import Complete, stitched
from pipeline.archive.format.manifest import Manifest, missing_shards
from pipeline.archive.format.row_ranges import part_of
from pipeline.archive.format.shard_check import check_finished
from pipeline.archive.format.size_estimate import MARGIN, free_bytes, shard_bytes
from pipeline.archive.writing import lock
from pipeline.archive.writing.active_writers import sign
from pipeline.archive.writing.finalize import stitch
from pipeline.archive.writing.resume import refuse_other_identity, resumed
from pipeline.archive.writing.shard_writer import ActivationBatch, ShardWriter, remove_leftovers
from pipeline.common.arrays import Array
from pipeline.common.atomic_files import write_failures_named
from pipeline.common.errors import ArchiveBusyError, ConfigError, DiskFullError
from pipeline.common.places import Place, mapped, uploads
from pipeline.common.progress import size

log = logging.getLogger(__name__)
_QUEUED_BATCHES = 2  # at most the number of buffer sets


class ArchiveWriter:
    """Writer of one archive or one part of it; at most one at a time."""

    def __init__(
        self, archive: Place, manifest: Manifest, part: range, filters: Mapping[str, Array],
        *, whole: bool,
    ) -> None:  # fmt: skip
        self.archive = archive
        self.manifest = manifest
        self._whole = whole
        self._filters = filters
        self.shards: dict[int, ArchiveFile] = {}  # finished shards of this part
        remove_leftovers(archive, part)
        missing = set(missing_shards(archive, manifest))
        self.todo = [number for number in part if number in missing]
        finished = [number for number in part if number not in missing]
        files = mapped(
            lambda number: check_finished(archive, manifest, number), finished, at=archive
        )
        self.shards.update(zip(finished, files, strict=True))
        self._rows: queue.Queue[ActivationBatch | None] = queue.Queue(maxsize=_QUEUED_BATCHES)
        self._failure: BaseException | None = None
        self._shard: ShardWriter | None = None
        self._thread = threading.Thread(target=self._write_all, name="archive-writer", daemon=True)
        # Disk work: syncing the rows written so far, and finishing (or uploading) full shards.
        self._at_once = max(1, uploads(archive))
        self._disk = ThreadPoolExecutor(self._at_once, thread_name_prefix="archive-disk")
        self._syncing: Future[None] | None = None
        self._finishing: set[Future[None]] = set()

    @classmethod
    @contextmanager
    def open(
        cls,
        archive: Place,
        manifest: Manifest,
        *,
        part: tuple[int, int],
        resume: bool,
        filters: Mapping[str, Array],
        first_samples: Callable[[int], Mapping[str, Any]],
    ) -> Iterator[ArchiveWriter]:
        """Open an archive for writing: a new one, or an unfinished one with the same fingerprint.

        Args:
            archive: its folder, created if missing.
            manifest: of the new extraction; an existing archive keeps its shard ranges.
            part: index and count of a sharded extraction.
            resume: whether an existing archive may be continued.
            filters: weights to store, each `(filter, channel, height, width)`.
            first_samples: see `pipeline.archive.writing.resume.resumed`.

        Raises:
            ArchiveError: when another process writes the archive, a finished shard is damaged, or
                a shard cannot be written.
            ConfigError: when the archive was made with another configuration; the message lists
                the differences.
            DiskFullError: when the disk is full.
        """
        index, count = part
        exists = (archive / schema.MANIFEST).exists()
        if exists and not resume:
            raise ConfigError(f"archive: {archive} exists and resume=false; set another archive=")
        if not exists and archive.is_dir() and not _ours(archive):
            raise ConfigError(f"archive: {archive} holds other files; use an empty or new folder")
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
        """Return the number of skipped samples in the finished shards."""
        return sum(shard.text("status").count(schema.STATUS_SKIPPED)
                   for shard in self.shards.values())  # fmt: skip

    def start(self) -> None:
        """Start the writing thread; call this after forking the loader's workers."""
        self._thread.start()

    def put(self, rows: ActivationBatch) -> None:
        """Queue the next rows; blocks while two batches are waiting to be written."""
        while True:
            self._raise_failure()
            try:
                self._rows.put(rows, timeout=0.2)
            except queue.Full:
                continue
            return

    def finish(self) -> Complete | None:
        """Wait until all rows are written, and complete the archive.

        Return None for a part, which must first release its lock (see `join`).
        """
        if self._thread.is_alive():
            self._rows.put(None)
            self._thread.join()
        self._raise_failure()
        return self._complete() if self._whole else None

    def join(self) -> Complete | None:
        """Complete the archive if every part has written its shards; called without a lock.

        Every part calls this; the last one completes the archive. Return None while shards are
        missing or another process is writing.
        """
        if missing_shards(self.archive, self.manifest):
            return None
        try:
            with lock.writing(self.archive), write_failures_named(self.archive):
                return self._complete()
        except ArchiveBusyError:
            return None

    def _complete(self) -> Complete:
        existing = None if self.todo else stitched(self.archive)
        return existing or stitch(self.archive, checked=self.shards)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _stop(self) -> None:
        """Write the rows that were put, stop the thread and discard the unfinished shard."""
        if self._thread.is_alive():
            self._rows.put(None)
            self._thread.join()
        self._disk.shutdown()
        if self._shard is not None:
            self._shard.abort()

    def _check_space(self, number: int) -> None:
        """Check that the next shard fits on the disk, with a margin of 5 %; wait for uploads."""
        needed = int(shard_bytes(self.manifest, number) * MARGIN)
        while free_bytes(self.archive) < needed:
            if self._finishing:
                self._settle(len(self._finishing) - 1)
                continue
            raise DiskFullError(
                f"{self.archive}: the disk is full (the next shard needs about "
                f"{size(needed)}); finished shards are intact. Free some space and "
                "run the same command again to continue"
            )

    def _write_all(self) -> None:
        try:
            for number in self.todo:
                self._check_space(number)
                self._shard = ShardWriter(self.archive, number, self.manifest, self._filters)
                if not self._fill(self._shard):
                    return
                self._finishing.add(self._disk.submit(self._finish, self._shard, number))
                self._shard = None
            if self._syncing:
                self._syncing.result()
            self._settle(0)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that calls put
            self._failure = error
            while (rows := self._rows.get()) is not None:  # until that thread stops
                rows.release()

    def _fill(self, shard: ShardWriter) -> bool:
        """Write rows until a shard is full; return False if the extraction stops before."""
        while (rows := self._rows.get()) is not None:
            try:
                full = shard.write(rows)
            finally:
                rows.release()
            self._settle(self._at_once - full)
            if full:
                return True
            if self._syncing is None or self._syncing.done():
                if self._syncing:
                    self._syncing.result()
                self._syncing = self._disk.submit(shard.sync)
        return False

    def _finish(self, shard: ShardWriter, number: int) -> None:
        self.shards[number] = shard.commit()

    def _settle(self, max_pending: int) -> None:
        """Wait until at most `max_pending` shards are being finished; a failure is raised here."""
        while True:
            enough = len(self._finishing) <= max_pending
            ended, self._finishing = wait(self._finishing, 0 if enough else None, FIRST_COMPLETED)
            for future in ended:
                future.result()
            if enough:
                return


def _ours(folder: Place) -> bool:
    own_names = {schema.SHARDS, schema.LOCK}
    return all(
        entry.name in own_names or entry.name.startswith((".", schema.LOCK))
        for entry in folder.iterdir()
    )
