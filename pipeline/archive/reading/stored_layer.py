"""One layer of an opened archive: rows of activations and statistics, read lazily."""

from collections.abc import Iterator

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.index import Index
from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.format.stored_type import value_type
from pipeline.archive.reading.indexing import parse
from pipeline.archive.reading.shards import Shards
from pipeline.common.arrays import Array
from pipeline.common.errors import suggestion


class StoredLayer:
    """One layer of an opened archive, indexed like an array `(sample, …)`."""

    def __init__(self, entry: LayerEntry, shards: Shards, index: Index) -> None:
        self.entry, self._shards, self._index = entry, shards, index
        self.name, self.alias = entry.name, entry.alias
        self.shape = (len(shards), *entry.shape)
        self.axes = (schema.SAMPLE, *entry.axes)
        self.dtype = value_type(entry.dtype)
        self._rows = schema.activation_rows(entry.name)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        sizes = " × ".join(
            f"{size} {axis}" for size, axis in zip(self.shape, self.axes, strict=True)
        )
        return f"<StoredLayer {self.name!r}: {sizes}, {self.entry.dtype}>"

    @property
    def ndim(self) -> int:
        """Number of axes, `sample` included."""
        return len(self.shape)

    def __getitem__(self, index: object) -> Array:
        """Return stored activations with NumPy indexing; only the requested rows are read.

        Args:
            index: integers, slices and `...` over all axes, `layer[3, 0]`, `layer[2:8, ..., ::2]`;
                on the sample axis also a list of row numbers or a boolean mask.

        Returns:
            Array with axes `sample` and `entry.axes`, without the axes indexed by an integer. Rows
            of skipped samples are NaN; `archive.stored` is the mask of the stored samples.

        Raises:
            IndexError: when the index is out of range or unsupported.
            ArchiveError: when a shard is damaged.
        """
        if type(index) is int and 0 <= index < self.shape[0]:
            row: Array = self._shards.read(self._rows, index, index + 1)[0]
            return row
        parsed = parse(index, self.shape)
        blocks = [self._shards.read(self._rows, *run, parsed.part) for run in parsed.runs()]
        if not blocks:
            blocks = [np.empty((0, *self.entry.shape), self.dtype)[(slice(None), *parsed.part)]]
        values: Array = np.concatenate(blocks) if len(blocks) > 1 else blocks[0]
        return values[0] if parsed.single else values

    def __iter__(self) -> Iterator[Array]:
        return (self[row] for row in range(len(self)))

    @property
    def rounding(self) -> float | None:
        """Largest relative error of the stored type against float32; None if unknown."""
        return self._index.rounding(self.entry)

    @property
    def position(self) -> Array:
        """Sampled positions, `(sample, token)`, for `reduction=positions`.

        Each is an index into the map, row by row, or into the tokens without prefix tokens.

        Raises:
            ValueError: when the layer stores all positions.
        """
        if not self.entry.drawn:
            raise ValueError(f"{self.name}: stores all positions; only sampled ones have an index")
        return self._shards.read(schema.position_rows(self.name), 0, len(self))

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
        """Return `sample_max` or `sample_mean` of a range of rows, `(sample, channel)` float32."""
        if self.entry.vector:  # the finite values of a vector are its own mean and maximum
            values = self._shards.read(self._rows, start, stop)
            return np.where(np.isfinite(values), values, np.nan).astype(np.float32)
        return self._shards.read(schema.statistic(self.name, figure), start, stop)

    @property
    def statistics(self) -> dict[str, Array]:
        """Statistics per channel over the positions of all samples (see `entry.positions`).

        The keys are count, mean, std, min, max, zero_fraction and nonfinite_count, which includes
        prefix tokens.
        """
        return self._index.statistics(self.entry)


class StoredLayers(dict[str, StoredLayer]):
    """The layers of an archive by name."""

    def __missing__(self, name: object) -> StoredLayer:
        """Raise KeyError with the nearest names."""
        raise KeyError(f"no layer {name!r}; {suggestion(str(name), self)}")
