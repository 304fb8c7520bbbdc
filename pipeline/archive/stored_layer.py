"""One layer of an opened archive: rows of activations and their statistics, read when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.archive import schema
from pipeline.archive.manifest import LayerEntry

if TYPE_CHECKING:
    from pipeline.archive.reader import Archive

Array = np.ndarray[Any, np.dtype[Any]]


class StoredLayer:
    """One layer of an opened archive; indexing reads one sample's activation."""

    def __init__(self, archive: Archive, entry: LayerEntry) -> None:
        """Belong to an archive."""
        self._archive = archive
        self.entry = entry
        self.name, self.alias = entry.name, entry.alias
        self.shape = (len(archive.samples), *entry.shape)
        self.axes = (schema.SAMPLE, *entry.axes)
        self.dtype = np.dtype(entry.dtype)

    def __len__(self) -> int:
        """Count the samples."""
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Array) -> Array:
        """Return activations as stored; only the asked rows are read.

        Args:
            index: a row (negative ones count from the end), a slice, row numbers or a boolean mask.

        Returns:
            `entry.axes` for a row, `sample` and `entry.axes` otherwise. Rows of skipped samples are
            all
            NaN: `archive.stored` is the mask of the others.

        Raises:
            IndexError: when there is no such row.
            ArchiveError: when a shard is damaged.
        """
        name = f"{schema.layer_group(self.name)}/{schema.ACTIVATION}"
        if isinstance(index, (int, np.integer)):
            row = int(index) + len(self) if index < 0 else int(index)
            return self._archive.read_row(name, row)
        if isinstance(index, slice):
            rows = range(len(self))[index]
            if rows.step == 1 and len(rows):
                return self._archive.read_rows(name, rows.start, rows.stop)
            numbers = list(rows)
        else:
            chosen = np.asarray(index)
            if chosen.dtype == bool:
                if chosen.shape != (len(self),):
                    raise IndexError(f"a mask needs {len(self)} values, got {chosen.shape}")
                chosen = np.flatnonzero(chosen)
            numbers = [int(i) + len(self) if i < 0 else int(i) for i in chosen]
        if not numbers:
            return np.empty((0, *self.entry.shape), self.dtype)
        return np.stack([self._archive.read_row(name, row) for row in numbers])

    @property
    def sample_max(self) -> Array:
        """Largest finite value per sample and channel, `(sample, channel)`.

        NaN for skipped samples.
        """
        return self.per_sample("sample_max", 0, len(self))

    @property
    def sample_mean(self) -> Array:
        """Mean of the finite values per sample and channel, `(sample, channel)`."""
        return self.per_sample("sample_mean", 0, len(self))

    def per_sample(self, figure: str, start: int, stop: int) -> Array:
        """Return `sample_max` or `sample_mean` of some rows, `(sample, channel)`."""
        name = f"{schema.layer_group(self.name)}/{schema.STATISTICS_GROUP}/{figure}"
        return self._archive.read_rows(name, start, stop)

    @property
    def statistics(self) -> dict[str, Array]:
        """Figures per channel over the dataset.

        Count mean std min max zero_fraction nonfinite_count.
        """
        base = f"{schema.layer_group(self.name)}/{schema.STATISTICS_GROUP}"
        names = ("count", "mean", "std", "min", "max", "zero_fraction", "nonfinite_count")
        return {name: self._archive.read_index(f"{base}/{name}") for name in names}
