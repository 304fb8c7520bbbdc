"""Writer of shards from batches of rows.

A shard is written under a hidden temporary name, closed, reopened and checked, synced, and renamed.
Only the rename makes it final, so files left by a killed process are never mistaken for data.
"""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import h5py
import numpy as np

from pipeline.archive.format import schema, tree
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.jpeg import encode
from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.format.manifest import FULL, JPEG, Manifest
from pipeline.archive.format.position_sampling import draw
from pipeline.archive.format.shard_check import check_shard
from pipeline.archive.format.statistics import Statistics, merge, over_samples
from pipeline.archive.format.stored_type import nan_bits
from pipeline.archive.writing.footer_writer import write_footer
from pipeline.archive.writing.jpeg_writer import JpegWriter
from pipeline.archive.writing.row_writer import RowWriter
from pipeline.common.arrays import Array
from pipeline.common.atomic_files import (
    commit,
    host,
    sync_file,
    temporary_beside,
    write_failures_named,
)
from pipeline.common.places import Place, scratch_folder, uploads

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ActivationBatch:
    """Consecutive rows of the archive, on the host.

    Attributes:
        start: first row.
        images: uint8 `(sample, channel, height, width)`.
        activations: layer name → `(sample, …)` in the stored type, bfloat16 as its bits.
        statistics: layer name → statistics of these samples; filled by `arrived`.
        samples: `(id, label, label_name, path)` per row.
        errors: reason per row why the sample was skipped; empty for stored samples.
        rounding: layer name → largest relative error of the stored type; empty for float32;
            filled by `arrived`.
        arrived: waits until the copies from the device have finished, and checks the values.
        release: returns the arrays' memory; the arrays are not accessed afterwards.
        jpegs: images as JPEG files, if they are at hand.
        pixels_sha256: digests of the images, if they are known; empty for skipped samples.
    """

    start: int
    images: Array
    activations: Mapping[str, Array]
    statistics: Mapping[str, Statistics]
    samples: Sequence[tuple[str, int, str, str]]
    errors: Sequence[str]
    rounding: Mapping[str, float] = dataclasses.field(default_factory=dict)
    arrived: Callable[[], None] = lambda: None
    release: Callable[[], None] = lambda: None
    jpegs: Sequence[bytes] = ()
    pixels_sha256: Sequence[str] = ()

    @property
    def stored(self) -> Array:
        """Boolean mask of the rows that were not skipped."""
        return np.array([not error for error in self.errors], dtype=bool)

    @property
    def nbytes(self) -> int:
        """Bytes of images and activations."""
        return int(self.images.nbytes + sum(array.nbytes for array in self.activations.values()))


class ShardWriter:
    """One unfinished shard."""

    def __init__(
        self, archive: Place, number: int, manifest: Manifest, filters: Mapping[str, Array]
    ) -> None:
        self.path = schema.shard_path(archive, number)
        self.start, self.stop = manifest.shards[number]
        self._manifest = manifest
        self._filters = filters
        self._next = self.start
        self._temporary = temporary_beside(self.path)
        self._table: list[tuple[str, int, str, str, str, int, str]] = []
        self._rounding: dict[str, float] = {}
        self._statistics: dict[str, list[Statistics]] = {
            layer.name: [] for layer in manifest.layers
        }
        self._per_sample: dict[str, list[Array]] = {}
        with self._failures_named():
            self._file = h5py.File(self._temporary, "w")
            tree.write_tree(self._file, manifest, self.start, self.stop)
            tree.write_filters(self._file, filters)
            self._rows = RowWriter(self._temporary, self._file, manifest.row_codecs)
            jpeg = manifest.inputs == JPEG
            self._jpegs = JpegWriter(self._temporary.parent) if jpeg else None

    def write(self, rows: ActivationBatch) -> bool:
        """Write rows; return whether the shard is now full."""
        count = len(rows.errors)
        if rows.start != self._next or rows.start + count > self.stop:
            raise AssertionError(
                f"rows {rows.start}+{count} do not follow {self._next} in {self.path}"
            )
        rows.arrived()
        stored = rows.stored
        values = {schema.IMAGE_ROWS: rows.images} if self._manifest.inputs == FULL else {}
        for layer in self._manifest.layers:
            activation = rows.activations[layer.name]
            values[schema.activation_rows(layer.name)] = _blanked(activation, stored)
            self._keep_figures(layer, rows.statistics[layer.name], stored)
        with self._failures_named():
            self._rows.write(rows.start - self.start, values)
            if self._jpegs:
                self._jpegs.write(rows.jpegs or map(encode, rows.images))
        for name, error in rows.rounding.items():
            self._rounding[name] = max(self._rounding.get(name, 0.0), error)
        digests = rows.pixels_sha256 or [
            "" if reason else hashlib.sha256(pixels.data).hexdigest()
            for pixels, reason in zip(rows.images, rows.errors, strict=True)
        ]
        for sample, digest, reason in zip(rows.samples, digests, rows.errors, strict=True):
            status = schema.STATUS_SKIPPED if reason else schema.STATUS_STORED
            self._table.append((*sample, digest, status, reason))
        self._next += count
        return self._next == self.stop

    def _keep_figures(self, layer: LayerEntry, figures: Statistics, stored: Array) -> None:
        self._statistics[layer.name].append(over_samples(figures, stored))
        if layer.vector:  # its values are their own mean and maximum
            return
        extremes = (figures.mean, np.where(figures.count > 0, figures.max, np.nan))
        for figure, values in zip(schema.SAMPLE_STATISTICS, extremes, strict=True):
            name = schema.statistic(layer.name, figure)
            masked = np.where(stored[:, None], values, np.nan).astype(np.float32)
            self._per_sample.setdefault(name, []).append(masked)

    def sync(self) -> None:
        """Sync the rows written so far, unless they will be uploaded; thread-safe."""
        if not uploads(self.path):
            sync_file(self._temporary)

    def commit(self) -> ArchiveFile:
        """Finish, check, sync and rename the shard; return it."""
        with self._failures_named():
            for layer in self._manifest.layers:
                figures = vars(merge(self._statistics[layer.name]))
                rounding = self._rounding.get(layer.name)
                tree.write_figures(self._file, layer.name, figures, rounding)
            columns = dict(zip(schema.SAMPLE_COLUMNS, zip(*self._table, strict=True), strict=True))
            tree.write_samples(self._file, columns)
            for name, parts in self._per_sample.items():
                self._file[name][...] = np.concatenate(parts)
            for layer in self._manifest.layers:
                if layer.drawn:
                    seed, of = layer.drawn
                    rows = range(self.start, self.stop)
                    position = self._file[schema.position_rows(layer.name)]
                    position[...] = draw([seed], rows, of, position.shape[1])
            self._rows.finish()
            if self._jpegs:
                self._jpegs.finish(self._file)
            write_footer(
                self._temporary, self._file,
                codecs=self._manifest.row_codecs, texts=columns,
                filters=self._filters, rounding=self._rounding,
            )  # fmt: skip
            # The footer detects later damage; lost writes are lost at the end of the file.
            check_shard(self._temporary, self._manifest, self.start, self.stop, rows="last")
            commit(self._temporary, self.path)
            return ArchiveFile(self.path)

    def abort(self) -> None:
        """Discard the unfinished shard."""
        with suppress(AttributeError):  # not set if creating the file failed
            self._rows.close()
            if self._jpegs:
                self._jpegs.close()
        # On a full disk, HDF5's close fails in several ways; the file is deleted in any case.
        with suppress(Exception):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        """Discard the shard when writing fails."""
        try:
            with write_failures_named(self.path):
                yield
        except BaseException:
            self.abort()
            raise


def _blanked(activation: Array, stored: Array) -> Array:
    """Return rows of activations with NaN for skipped samples."""
    if stored.all():
        return activation
    shape = (-1,) + (1,) * (activation.ndim - 1)
    return np.where(stored.reshape(shape), activation, nan_bits(activation.dtype))


def remove_leftovers(archive: Place, numbers: Sequence[int]) -> None:
    """Delete unfinished files of these shards, left by killed writers.

    The scratch folder of an object store is shared: files of running processes stay.
    """
    if folder := scratch_folder(archive):
        for unfinished in folder.glob(f".*.{host()}.*.tmp"):
            try:
                os.kill(int(unfinished.name.split(".")[-3]), 0)
            except ProcessLookupError:
                unfinished.unlink(missing_ok=True)
            except PermissionError:  # the process of another user
                pass
        return
    for number in numbers:
        final = schema.shard_path(archive, number)
        for leftover in final.parent.glob(f".{final.name}.*.tmp"):
            log.info("removing unfinished %s", leftover)
            leftover.unlink(missing_ok=True)
