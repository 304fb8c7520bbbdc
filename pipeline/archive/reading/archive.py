"""The reading side: a complete archive as samples, inputs and lazily read layers.

Needs neither torch nor a model.
"""

from __future__ import annotations

import copy
import importlib
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
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
from pipeline.archive.reading.shards import Shards
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.errors import ArchiveError, ConfigError, LayerError, suggestion
from pipeline.common.paths import local_path


class Archive:
    """An archive, opened read-only.

    >>> with Archive.open("outputs/run/archive") as archive:  # doctest: +SKIP
    ...     archive.layers["layer1"][0]  # (channel, height, width)
    ...     archive.layers["layer1"][10:20]  # (sample, channel, height, width)
    """

    def __init__(
        self, path: Path, manifest: Manifest, complete: Complete, shards: Shards, index: Index,
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
    def open(cls, path: str | Path, *, check: bool = True) -> Archive:
        """Open a complete archive.

        Args:
            path: its folder, a file directly in it, the folder of the run that made it, or a file
                that `pack` has made of it.
            check: compare every table and every row that is read with its checksum. Without, damage
                may go unnoticed.

        Raises:
            ArchiveError: when it is not an archive, is not complete, or a shard is missing.
        """
        folder = schema.archive_folder(local_path(path))
        if folder.is_file():
            return cls._open_packed(folder, check=check)
        if not (folder / schema.MANIFEST).is_file():
            of_sweep = [str(archive) for archive in schema.archives_of(folder) if archive != folder]
            if of_sweep:
                raise ArchiveError(f"{path}: a sweep's folder; choose one of {', '.join(of_sweep)}")
            raise ArchiveError(
                f"{path}: not an archive (there is no {schema.MANIFEST} in {folder})"
            )
        manifest = Manifest.read(folder)
        complete = Complete.read(folder)
        index = folder / schema.INDEX
        if not index.is_file():
            raise ArchiveError(
                f"{index}: missing; run: featuremaps stitch {shlex.quote(str(folder))}"
            )
        if complete.fingerprint != manifest.fingerprint:
            raise ArchiveError(f"{folder}: {schema.COMPLETE} belongs to another archive")
        shards = [schema.shard_path(folder, number) for number in range(len(manifest.shards))]
        for shard in shards:
            if not shard.is_file():
                raise ArchiveError(f"{shard}: missing; run the same extraction again to rewrite it")
        digests = {Path(name).name: digest for name, digest in complete.files.items()}
        digest = complete.files.get(schema.INDEX, "") if check else None
        return cls(
            folder, manifest, complete,
            Shards(shards, manifest, digests, check=check),
            FileIndex(index, manifest, digest=digest, check=check),
            check=check,
        )  # fmt: skip

    @classmethod
    def _open_packed(cls, path: Path, *, check: bool) -> Archive:
        """Open a file that `pack` has written."""
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
        index = FileIndex(path, manifest, digest=None, check=check)
        return cls(path, manifest, complete, Shards([path], manifest, {}, check=check), index,
                   check=check)  # fmt: skip

    @classmethod
    def open_partial(cls, path: str | Path) -> Archive:
        """Open the finished shards of an archive that is being written, or was never finished.

        The model's name says how much there is. Samples of missing shards are not there; the others
        keep their rows as long as the shards before theirs are finished.

        Raises:
            ArchiveError: when there is no archive, no shard is finished, or one is damaged.
        """
        folder = schema.archive_folder(Path(path).expanduser())
        manifest = Manifest.read(folder)
        missing = set(missing_shards(folder, manifest))
        done = [number for number in range(len(manifest.shards)) if number not in missing]
        if not done:
            raise ArchiveError(f"{folder}: no shard is finished yet; there is nothing to draw")
        part = manifest.with_shards(done)
        shards = Shards([schema.shard_path(folder, n) for n in done], part, {}, check=True)
        index = ShardIndex([shards.file(number) for number in range(len(done))], part)
        samples = index.samples()
        if list(samples.ids) != list(part.samples):
            raise ArchiveError(f"{folder}: the sample tables do not match the manifest")
        complete = Complete(
            fingerprint=part.fingerprint,
            samples=len(samples),
            skipped=skipped_count(samples),
            shards=len(done),
            bytes=sum(schema.shard_path(folder, n).stat().st_size for n in done),
            files={},
        )
        return cls(folder, part, complete, shards, index, check=True)

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
        """Return the same archive, sharing its files."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        return part

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process open the archive for itself."""
        return _opened, (self.path, self._check, list(self.layers))

    @property
    def samples(self) -> Samples:
        """The samples in the order of their rows; read when they are first asked for."""
        return self._index.samples()

    def _repr_html_(self) -> str:
        """Return what a notebook shows: model, samples, layers."""
        return archive_html(self.path, self.manifest, skipped=self.complete.skipped)

    def show(self, sample: int | str, *layers: str) -> Any:
        """Return a picture of a sample that a notebook shows.

        One layer is drawn as a grid of its maps, several (without names, all) as an overview; see
        `pipeline.renderers.show.show`.
        """
        return importlib.import_module("pipeline.renderers.show").show(self, sample, *layers)

    def layer(self, name: str) -> StoredLayer:
        """Return a layer by name or alias.

        Raises:
            LayerError: when there is none, with the nearest names.
        """
        for layer in self.layers.values():
            if name in (layer.name, layer.alias):
                return layer
        raise LayerError(f"{self.path}: no layer {name!r}; {suggestion(name, self.layers)}")

    def with_layers(self, wanted: Sequence[str]) -> Self:
        """Return this archive with some of its layers only; both share their files.

        Args:
            wanted: names, aliases or globs.

        Raises:
            LayerError: when one matches no layer, with the nearest names.
        """
        return self._only(layers_matching(self.manifest.layers, wanted, where=str(self.path)))

    def _only(self, kept: Collection[str]) -> Self:
        part = copy.copy(self)
        part.layers = {name: layer for name, layer in self.layers.items() if name in kept}
        part.manifest = replace(
            self.manifest, layers=[layer for layer in self.manifest.layers if layer.name in kept]
        )
        return part

    @property
    def has_inputs(self) -> bool:
        """Whether the pixels of the inputs are stored (`storage.inputs`)."""
        return bool(self.manifest.input_rows)

    def image(self, index: int) -> Array:
        """Return what the model saw of a sample: uint8 `(height, width, rgb)`.

        Grey inputs are repeated; with `storage.inputs=jpeg` pixels are those of the JPEG file.

        Raises:
            ArchiveError: when inputs are not stored (see `has_inputs`), or they are damaged.
        """
        if not self.has_inputs:
            raise ArchiveError(
                f"{self.path}: holds no inputs (storage.inputs={self.manifest.inputs}); extract "
                "with storage.inputs=full or jpeg to keep them"
            )
        pixels = self.read_row(self.manifest.input_rows, index).transpose(1, 2, 0)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

    def jpeg(self, index: int) -> bytes:
        """Return the JPEG file of a sample's input.

        Raises:
            IndexError: when there is no such row.
            ArchiveError: when inputs are not stored as JPEG, or it is damaged.
        """
        if self.manifest.inputs != JPEG:
            raise ArchiveError(f"{self.path}: storage.inputs={self.manifest.inputs}, not jpeg")
        self._check_row(index)
        return self._shards.jpeg(index)

    @property
    def filters(self) -> dict[str, Array]:
        """Weights of the convolutions that see the image, in execution order.

        Layer → `(filter, channel, height, width)`.
        """
        return self._index.filters()

    def read_row(self, name: str, index: int) -> Array:
        """Return one row of a dataset that every shard has, read from the shard itself.

        Raises:
            IndexError: when there is no such row.
            ArchiveError: naming the shard, when it cannot be read or its checksum fails.
        """
        self._check_row(index)
        row: Array = self.read_rows(name, index, index + 1)[0]
        return row

    def _check_row(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index}: the archive has {len(self)}")

    def read_rows(
        self, name: str, start: int, stop: int, part: tuple[int | slice, ...] = ()
    ) -> Array:
        """Return the rows start..stop of a dataset that every shard has.

        Args:
            name: HDF5 path of the dataset.
            start, stop: half-open range of rows, not empty.
            part: what is read of each row, per axis.

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
            out: `(row, …)`, contiguous and of the type that `read_rows` returns.
            places: where each goes in `out`; None: one after another.
            threads: that read, if there is much to read.

        Raises:
            ArchiveError: naming the shard, when it cannot be read or a checksum fails.
        """
        self._shards.read_into(name, rows, out, places, threads=threads)

    @property
    def status(self) -> Array:
        """`schema.STATUS_STORED` or `STATUS_SKIPPED` per sample, uint8."""
        return self.samples.status

    @property
    def stored(self) -> Array:
        """Boolean per sample: not skipped (the mask to index activations with)."""
        mask: Array = self.status == schema.STATUS_STORED
        return mask

    def to_xarray(self) -> Any:
        """Return the archive as an `xarray.DataTree`, lazily (needs xarray and h5netcdf).

        Skipped rows are NaN there; `tree["samples"]["status"]` says which. Every layer has the
        ids as a coordinate `id` of its samples.
        """
        try:
            import xarray
        except ImportError as error:
            raise ConfigError(
                "xarray is not installed; run: pip install xarray h5netcdf"
            ) from error
        path = self.path if self.path.is_file() else self.path / schema.INDEX
        check_hdf5_view([ArchiveFile(path)])  # HDF5 itself may crash on a damaged file
        tree = xarray.open_datatree(path, engine="h5netcdf", phony_dims="sort")
        ids = ("sample", list(self.samples.ids))
        for layer in self.layers:
            node = tree[schema.layer_group(layer)]
            node.dataset = node.to_dataset().assign_coords(id=ids)
        return tree


def _opened(path: Path, check: bool, layers: Collection[str]) -> Archive:
    """Return an archive with some of its layers (see `Archive.__reduce__`)."""
    return Archive.open(path, check=check)._only(layers)
