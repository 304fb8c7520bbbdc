"""Reader of an archive: samples, inputs and lazily read layers.

It needs neither torch nor a model.
"""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Self

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.codec import ready
from pipeline.archive.format.layer_entry import layer_named, layers_matching
from pipeline.archive.format.manifest import JPEG
from pipeline.archive.format.samples import Samples
from pipeline.archive.reading.data_tree import data_tree
from pipeline.archive.reading.notebook import archive_html
from pipeline.archive.reading.opening import (
    OpenedArchive,
    open_complete,
    open_finished,
    open_packed,
)
from pipeline.archive.reading.stored_layer import StoredLayer, StoredLayers
from pipeline.common.arrays import Array
from pipeline.common.errors import ArchiveError, ConfigError, plural
from pipeline.common.places import Place, mapped, place


class Archive:
    """An archive opened read-only.

    >>> with Archive.open("outputs/run/archive") as archive:  # doctest: +SKIP
    ...     archive.layers["layer1"][0]  # (channel, height, width)
    ...     archive.layers["layer1"][10:20]  # (sample, channel, height, width)
    """

    def __init__(self, opened: OpenedArchive) -> None:
        if not isinstance(opened, OpenedArchive):
            raise ConfigError("Archive: use Archive.open(path)")
        self.path, self.manifest, self.complete, self._shards, self._index, self._check = opened
        ready(layer.codec for layer in self.manifest.layers)
        self.layers = StoredLayers(
            (layer.name, StoredLayer(layer, self._shards, self._index))
            for layer in self.manifest.layers
        )

    @classmethod
    def open(
        cls, path: str | Place, *, check: bool = True,
        storage_options: Mapping[str, str] | None = None, cache: str = "",
    ) -> Self:  # fmt: skip
        """Open a complete archive.

        Args:
            path: folder of the archive, a file directly in it, the folder of its run, a packed
                file, or a URL of one: `s3://`, `gs://`, `az://`, `https://`.
            check: compare every table and row with its checksum on reading. Without it, damage may
                go unnoticed.
            storage_options: options of an object store, by object_store's names; the environment
                (`AWS_…`, `GOOGLE_…`, `AZURE_…`) has the others.
            cache: `rows` also keeps the rows of an object store in the folder `FEATUREMAPS_CACHE`,
                for later epochs and runs.

        Raises:
            ArchiveError: when the path is not a complete archive or a shard is missing.
            StoreError: when an object store cannot be reached.
        """
        typed = place(path, storage_options=storage_options, cache=cache)
        folder = schema.archive_folder(typed.absolute())
        if folder.is_file():
            return cls(open_packed(folder, check=check))
        return cls(open_complete(folder, named_as=path, check=check))

    @classmethod
    def open_partial(
        cls, path: str | Place, *, storage_options: Mapping[str, str] | None = None
    ) -> Self:
        """Open the finished shards of an unfinished archive.

        The model's title states the number of samples. Samples of missing shards are omitted; the
        others keep their rows if all earlier shards are finished.

        Raises:
            ArchiveError: when the archive does not exist, no shard is finished, or one is damaged.
        """
        typed = place(path, storage_options=storage_options)
        return cls(open_finished(schema.archive_folder(typed.absolute())))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every file."""
        self._shards.close()

    def __len__(self) -> int:
        return len(self.manifest.samples)

    def __repr__(self) -> str:
        return (
            f"<Archive {str(self.path)!r}: {self.manifest.model_title}, "
            f"{plural(len(self), 'sample')}, {plural(len(self.layers), 'layer')}>"
        )

    def __copy__(self) -> Self:
        duplicate = object.__new__(type(self))
        duplicate.__dict__.update(self.__dict__)
        return duplicate

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and layers: the receiving process opens the archive itself."""
        return _opened, (self.path, self._check, list(self.layers))

    @property
    def samples(self) -> Samples:
        """The samples in row order, read on first access."""
        return self._index.samples

    def _repr_html_(self) -> str:
        return archive_html(self.path, self.manifest, skipped=self.complete.skipped)

    def layer(self, name: str) -> StoredLayer:
        """Return a layer by name or alias.

        Raises:
            LayerError: when no layer has this name; the message lists the nearest names.
        """
        return self.layers[layer_named(self.manifest.layers, name, where=str(self.path)).name]

    def with_layers(self, names: str | Sequence[str]) -> Self:
        """Return this archive restricted to some layers; both share the open files.

        Args:
            names: names, aliases or globs; empty selects all.

        Raises:
            LayerError: when a pattern matches no layer; the message lists the nearest names.
        """
        return self._only(layers_matching(self.manifest.layers, names, where=str(self.path)))

    def _only(self, names: Collection[str]) -> Self:
        subset = copy.copy(self)
        subset.layers = StoredLayers(
            (name, layer) for name, layer in self.layers.items() if name in names
        )
        subset.manifest = replace(
            self.manifest, layers=[layer for layer in self.manifest.layers if layer.name in names]
        )
        return subset

    @property
    def has_inputs(self) -> bool:
        """Whether the pixels of the inputs are stored (`storage.inputs`)."""
        return bool(self.manifest.input_rows)

    def image(self, index: int) -> Array:
        """Return the model's input pixels of a sample: uint8 `(height, width, rgb)`.

        Grey inputs are repeated to RGB; with `storage.inputs=jpeg` the JPEG file is decoded.

        Raises:
            ArchiveError: when inputs are not stored (see `has_inputs`) or are damaged.
        """
        if not self.has_inputs:
            raise ArchiveError(
                f"{self.path}: holds no inputs (storage.inputs={self.manifest.inputs}); extract "
                "with storage.inputs=full or jpeg to store them"
            )
        self._check_row(index)
        (row,) = self.read_rows(self.manifest.input_rows, index, index + 1)
        pixels = row.transpose(1, 2, 0)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

    def jpeg(self, index: int) -> bytes:
        """Return the JPEG file of a sample's input.

        Raises:
            IndexError: when the row does not exist.
            ArchiveError: when inputs are not stored as JPEG or the file is damaged.
        """
        if self.manifest.inputs != JPEG:
            raise ArchiveError(f"{self.path}: storage.inputs={self.manifest.inputs}, not jpeg")
        self._check_row(index)
        return self._shards.jpeg(index)

    @property
    def filters(self) -> dict[str, Array]:
        """Weights of the convolutions on the image, in execution order.

        Layer → `(filter, channel, height, width)`.
        """
        return self._index.filters()

    def _check_row(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(
                f"sample {index} does not exist; the archive has {plural(len(self), 'sample')}"
            )

    def read_rows(
        self, name: str, start: int, stop: int, part: tuple[int | slice, ...] = ()
    ) -> Array:
        """Return the rows start..stop of a dataset that every shard has.

        Args:
            name: HDF5 path of the dataset.
            start, stop: half-open range of rows, not empty.
            part: index of each further axis, an integer or a slice; empty for whole rows.

        Raises:
            ArchiveError: naming the shard, when it cannot be read or its checksum fails.
        """
        return self._shards.read(name, start, stop, part)

    def read_into(
        self, name: str, rows: Sequence[int], out: Array, places: Sequence[int] | None = None,
        *, threads: int = 2,
    ) -> None:  # fmt: skip
        """Read rows of a dataset that every shard has, in any order, into an array.

        Args:
            name: HDF5 path of the dataset.
            rows: row numbers.
            out: `(row, …)`, contiguous, with the type that `read_rows` returns.
            places: index in `out` of each row; None: in order.
            threads: number of threads for large reads.

        Raises:
            ArchiveError: naming the shard, when it cannot be read or a checksum fails.
        """
        self._shards.read_into(name, rows, out, places, threads=threads)

    def fetched(self, requests: Iterable[tuple[str, Sequence[int]]]) -> Self:
        """Return this archive with some rows of some datasets requested from the store at once.

        An archive on a disk is returned as it is.
        """
        shards = self._shards.fetched(requests)
        if shards is self._shards:
            return self
        subset = copy.copy(self)
        subset._shards = shards
        subset.layers = StoredLayers(
            (name, StoredLayer(layer.entry, shards, self._index))
            for name, layer in self.layers.items()
        )
        return subset

    def fetched_each(self, names: Sequence[str], batches: Iterable[Array]) -> Iterator[Self]:
        """Yield this archive as `fetched` for each of several lists of rows of the same datasets.

        The next lists are requested while one is used.
        """
        return mapped(
            lambda rows: self.fetched([(n, rows) for n in names]), batches, at=self.path, ahead=8
        )

    @property
    def status(self) -> Array:
        """`schema.STATUS_STORED` or `STATUS_SKIPPED` per sample, uint8."""
        return self.samples.status

    @property
    def stored(self) -> Array:
        """Boolean mask of the samples that were not skipped, to index activations with."""
        mask: Array = self.status == schema.STATUS_STORED
        return mask

    def to_xarray(self) -> Any:
        """Return the archive as a lazy `xarray.DataTree` (needs xarray and h5netcdf).

        Skipped rows are NaN; `tree["samples"]["status"]` marks them. Every layer has the ids as a
        coordinate `id` of its samples. HDF5 reads the values, without checksums; see `verify`.
        """
        return data_tree(self.path, self.samples.ids, self.layers)


def opened(archive: Archive | str | Place) -> AbstractContextManager[Archive]:
    """Open an archive for a `with` block; one that is open already stays open."""
    return nullcontext(archive) if isinstance(archive, Archive) else Archive.open(archive)


def _opened(path: Place, check: bool, layers: Collection[str]) -> Archive:
    return Archive.open(path, check=check)._only(layers)
