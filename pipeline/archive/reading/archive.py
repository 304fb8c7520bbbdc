"""Reader of an archive: samples, inputs and lazily read layers.

It needs neither torch nor a model.
"""

from __future__ import annotations

import copy
import importlib
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.codec import ready
from pipeline.archive.format.completion import Complete
from pipeline.archive.format.index import FileIndex, Index, ShardIndex, skipped_count
from pipeline.archive.format.manifest import JPEG, Manifest, layers_matching, missing_shards
from pipeline.archive.format.samples import Samples
from pipeline.archive.format.shard_check import check_footer
from pipeline.archive.reading.hdf5_check import check_hdf5_view
from pipeline.archive.reading.notebook import archive_html
from pipeline.archive.reading.remote_shards import open_shards
from pipeline.archive.reading.shards import Shards
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.errors import ArchiveError, ConfigError, LayerError, suggestion
from pipeline.common.places import Place, ahead, first_missing, local_file, place


class Archive:
    """An archive opened read-only.

    >>> with Archive.open("outputs/run/archive") as archive:  # doctest: +SKIP
    ...     archive.layers["layer1"][0]  # (channel, height, width)
    ...     archive.layers["layer1"][10:20]  # (sample, channel, height, width)
    """

    def __init__(
        self, path: Place, manifest: Manifest, complete: Complete, shards: Shards, index: Index,
        *, check: bool,
    ) -> None:  # fmt: skip
        """Use `Archive.open`."""
        ready(layer.codec for layer in manifest.layers)
        self.path, self._check = path, check
        self.manifest = manifest
        self.complete = complete
        self._shards, self._index = shards, index
        self.layers: Mapping[str, StoredLayer] = {
            layer.name: StoredLayer(layer, shards, index) for layer in manifest.layers
        }

    @classmethod
    def open(
        cls, path: str | Place, *, check: bool = True,
        storage_options: Mapping[str, str] | None = None, cache: str = "",
    ) -> Archive:  # fmt: skip
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
        folder = schema.archive_folder(place(path, storage_options=storage_options, cache=cache))
        if folder.is_file():
            return cls._open_packed(folder, check=check)
        try:
            manifest = Manifest.read(folder)
        except ArchiveError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            archives = [str(archive) for archive in schema.archives_of(folder) if archive != folder]
            if archives:
                raise ArchiveError(
                    f"{path}: the folder of a sweep; choose one of {', '.join(archives)}"
                ) from None
            raise ArchiveError(
                f"{path}: not an archive ({folder} contains no {schema.MANIFEST})"
            ) from None
        complete = Complete.read(folder)
        index = folder / schema.INDEX
        if first_missing([index]):
            raise ArchiveError(
                f"{index}: missing; run: featuremaps stitch {shlex.quote(str(folder))}"
            )
        if complete.fingerprint != manifest.fingerprint:
            raise ArchiveError(f"{folder}: {schema.COMPLETE} belongs to another archive")
        shards = [schema.shard_path(folder, number) for number in range(len(manifest.shards))]
        if shard := first_missing(shards):
            raise ArchiveError(f"{shard}: missing; run the same extraction again to rewrite it")
        digests = {name.rpartition("/")[2]: digest for name, digest in complete.files.items()}
        return cls(
            folder, manifest, complete,
            open_shards(shards, manifest, digests, check=check),
            FileIndex(index, manifest, digest=digests.get(schema.INDEX, ""), check=check),
            check=check,
        )  # fmt: skip

    @classmethod
    def _open_packed(cls, path: Place, *, check: bool) -> Archive:
        file = ArchiveFile(path)
        ids = file.text("id")
        manifest = replace(
            Manifest.from_json(file.text("manifest"), where=path),
            samples=ids, shards=[(0, len(ids))], previous_fingerprints=(),
        )  # fmt: skip
        complete = Complete(
            fingerprint=manifest.fingerprint,
            samples=len(ids),
            skipped=sum(file.text("status")),
            shards=1,
            bytes=path.stat().st_size,
            files={},
        )
        check_footer(path, file.footer, manifest, 0, len(ids))
        digest = file.footer.digest
        index = FileIndex(path, manifest, digest=digest, check=check)
        shards = open_shards([path], manifest, {path.name: digest}, check=check)
        return cls(path, manifest, complete, shards, index, check=check)

    @classmethod
    def open_partial(
        cls, path: str | Place, *, storage_options: Mapping[str, str] | None = None
    ) -> Archive:
        """Open the finished shards of an unfinished archive.

        The model's title states the number of samples. Samples of missing shards are omitted; the
        others keep their rows if all earlier shards are finished.

        Raises:
            ArchiveError: when the archive does not exist, no shard is finished, or one is damaged.
        """
        folder = schema.archive_folder(place(path, storage_options=storage_options))
        manifest = Manifest.read(folder)
        missing = set(missing_shards(folder, manifest))
        finished = [number for number in range(len(manifest.shards)) if number not in missing]
        if not finished:
            raise ArchiveError(f"{folder}: no shard is finished yet; wait for the first one")
        partial = manifest.with_shards(finished)
        paths = [schema.shard_path(folder, number) for number in finished]
        shards = open_shards(paths, partial, {}, check=True)
        index = ShardIndex([shards.file(number) for number in range(len(finished))], partial)
        samples = index.samples()
        if list(samples.ids) != list(partial.samples):
            raise ArchiveError(f"{folder}: the sample tables do not match the manifest")
        complete = Complete(
            fingerprint=partial.fingerprint,
            samples=len(samples),
            skipped=skipped_count(samples),
            shards=len(finished),
            bytes=sum(path.stat().st_size for path in paths),
            files={},
        )
        return cls(folder, partial, complete, shards, index, check=True)

    def __enter__(self) -> Self:
        """Return the archive itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every file."""
        self.close()

    def close(self) -> None:
        """Close every file."""
        self._shards.close()

    def __len__(self) -> int:
        """Count the samples, skipped ones included."""
        return len(self.manifest.samples)

    def __repr__(self) -> str:
        """Return path, model and sizes."""
        return (
            f"<Archive {str(self.path)!r}: {self.manifest.model_title}, {len(self)} samples, "
            f"{len(self.layers)} layers>"
        )

    def __copy__(self) -> Self:
        """Return a copy that shares the open files."""
        duplicate = object.__new__(type(self))
        duplicate.__dict__.update(self.__dict__)
        return duplicate

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and layers: the receiving process opens the archive itself."""
        return _opened, (self.path, self._check, list(self.layers))

    @property
    def samples(self) -> Samples:
        """The samples in row order, read on first access."""
        return self._index.samples()

    def _repr_html_(self) -> str:
        """Return the notebook representation: model, samples, layers."""
        return archive_html(self.path, self.manifest, skipped=self.complete.skipped)

    def show(self, sample: int | str, *layers: str) -> Any:
        """Return a picture of a sample for notebooks.

        One layer is drawn as a grid of its maps, several layers as an overview; the default is all
        layers. See `pipeline.renderers.show.show`.
        """
        return importlib.import_module("pipeline.renderers.show").show(self, sample, *layers)

    def layer(self, name: str) -> StoredLayer:
        """Return a layer by name or alias.

        Raises:
            LayerError: when no layer has this name; the message lists the nearest names.
        """
        for layer in self.layers.values():
            if name in (layer.name, layer.alias):
                return layer
        raise LayerError(f"{self.path}: no layer {name!r}; {suggestion(name, self.layers)}")

    def with_layers(self, wanted: Sequence[str]) -> Self:
        """Return this archive restricted to some layers; both share the open files.

        Args:
            wanted: names, aliases or globs.

        Raises:
            LayerError: when a pattern matches no layer; the message lists the nearest names.
        """
        return self._only(layers_matching(self.manifest.layers, wanted, where=str(self.path)))

    def _only(self, names: Collection[str]) -> Self:
        subset = copy.copy(self)
        subset.layers = {name: layer for name, layer in self.layers.items() if name in names}
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
        pixels = self.read_row(self.manifest.input_rows, index).transpose(1, 2, 0)
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

    def read_row(self, name: str, index: int) -> Array:
        """Return one row of a dataset that every shard has.

        Raises:
            IndexError: when the row does not exist.
            ArchiveError: naming the shard, when it cannot be read or its checksum fails.
        """
        self._check_row(index)
        row: Array = self.read_rows(name, index, index + 1)[0]
        return row

    def _check_row(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} does not exist; the archive has {len(self)} samples")

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

    def fetched(self, wanted: Iterable[tuple[str, Sequence[int]]]) -> Self:
        """Return this archive with some rows of some datasets requested from the store at once.

        An archive on a disk is returned as it is.
        """
        shards = self._shards.fetched(wanted)
        if shards is self._shards:
            return self
        subset = copy.copy(self)
        subset._shards = shards
        subset.layers = {
            name: StoredLayer(layer.entry, shards, self._index)
            for name, layer in self.layers.items()
        }
        return subset

    def fetched_each(self, names: Sequence[str], several: Iterable[Array]) -> Iterator[Self]:
        """Yield this archive as `fetched` for each of several lists of rows of the same datasets.

        The next lists are requested while one is used.
        """
        return ahead(
            lambda rows: self.fetched([(name, rows) for name in names]), several, at=self.path
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
        coordinate `id` of its samples.
        """
        try:
            import xarray
        except ImportError as error:
            raise ConfigError(
                "xarray is not installed; run: pip install xarray h5netcdf"
            ) from error
        folder = local_file(self.path, "xarray")
        path = folder if folder.is_file() else folder / schema.INDEX
        check_hdf5_view([ArchiveFile(path)])  # HDF5 may crash on a damaged file
        tree = xarray.open_datatree(path, engine="h5netcdf", phony_dims="sort")
        ids = ("sample", list(self.samples.ids))
        for layer in self.layers:
            node = tree[schema.layer_group(layer)]
            node.dataset = node.to_dataset().assign_coords(id=ids)
        return tree


def _opened(path: Place, check: bool, layers: Collection[str]) -> Archive:
    return Archive.open(path, check=check)._only(layers)
