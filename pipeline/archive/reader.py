"""The reading side: a complete archive as samples, inputs and lazily read layers.

Needs neither torch nor a model.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from pipeline.archive import schema
from pipeline.archive.manifest import LayerEntry, Manifest
from pipeline.errors import ArchiveError, LayerError
from pipeline.names import suggestion

Array = np.ndarray[Any, np.dtype[Any]]
_OPEN_SHARDS = 32


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """One row of the sample table; `error` is empty unless the sample was skipped."""

    index: int
    id: str
    label: int
    label_name: str
    path: str
    error: str


class Archive:
    """An archive, opened read-only.

    >>> with Archive.open("outputs/run/archive") as archive:  # doctest: +SKIP
    ...     archive.layers["layer1"][0]  # (channel, height, width)
    """

    def __init__(self, path: Path, manifest: Manifest, complete: Mapping[str, Any]) -> None:
        """Use `Archive.open`."""
        self.path = path
        self.manifest = manifest
        self.complete = complete
        self._starts = [start for start, _ in manifest.shards]
        self._lock = threading.Lock()  # render threads share one archive
        self._files: OrderedDict[int, h5py.File] = OrderedDict()
        self._index = _open(path / schema.INDEX)
        self.samples: Sequence[StoredSample] = self._read_samples()
        self.layers: Mapping[str, StoredLayer] = {
            layer.name: StoredLayer(self, layer) for layer in manifest.layers
        }

    @classmethod
    def open(cls, path: str | Path) -> Archive:
        """Open a complete archive, given its folder or any file directly in it.

        Raises:
            ArchiveError: when it is none, is not complete, or a shard is missing or has another
                size.
        """
        folder = Path(path)
        if folder.is_file():
            folder = folder.parent
        if not (folder / schema.MANIFEST).is_file():
            raise ArchiveError(
                f"{path}: not an archive (there is no {schema.MANIFEST} in {folder})"
            )
        manifest = Manifest.read(folder)
        try:
            complete = json.loads((folder / schema.COMPLETE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArchiveError(
                f"{folder}: not complete; run the same extraction again to finish it, or "
                "`featuremaps info "
                f"{folder}` to see what is there"
            ) from None
        except (OSError, ValueError) as error:
            raise ArchiveError(f"{folder / schema.COMPLETE}: cannot be read ({error})") from error
        if complete.get("fingerprint") != manifest.fingerprint:
            raise ArchiveError(f"{folder}: {schema.COMPLETE} belongs to another archive")
        for number in range(len(manifest.shards)):
            shard = schema.shard_path(folder, number)
            if not shard.is_file():
                raise ArchiveError(f"{shard}: missing; run the same extraction again to make it")
        return cls(folder, manifest, complete)

    def __enter__(self) -> Self:
        """Return the archive itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every file."""
        self.close()

    def close(self) -> None:
        """Close every file."""
        for file in (self._index, *self._files.values()):
            file.close()
        self._files.clear()

    def __len__(self) -> int:
        """Count the samples, skipped ones included."""
        return len(self.samples)

    def layer(self, name: str) -> StoredLayer:
        """Return a layer by name or alias.

        Raises:
            LayerError: when there is none, with the nearest names.
        """
        for layer in self.layers.values():
            if name in (layer.name, layer.alias):
                return layer
        raise LayerError(f"{self.path}: no layer {name!r}; {suggestion(name, self.layers)}")

    def image(self, index: int) -> Array:
        """Return what the model saw of a sample: uint8 `(height, width, rgb)`.

        Grey inputs are repeated.
        """
        pixels = self.read_row(f"{schema.INPUTS_GROUP}/{schema.IMAGE}", index).transpose(1, 2, 0)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

    @property
    def filters(self) -> dict[str, Array]:
        """Weights of convolutions on few input channels.

        Layer → `(filter, channel, height, width)`.
        """
        group = self._index[schema.FILTERS_GROUP]
        return {d.attrs["layer"]: d[()] for d in group.values() if "layer" in d.attrs}

    def read_row(self, name: str, index: int) -> Array:
        """Return one row of a dataset that every shard has, read from the shard itself.

        Raises:
            ArchiveError: naming the shard, when it cannot be read or its checksum fails.
        """
        if not 0 <= index < len(self.samples):
            raise IndexError(f"sample {index}: the archive has {len(self.samples)}")
        number = bisect_right(self._starts, index) - 1
        try:
            with self._lock:
                row: Array = self._shard(number)[name][index - self._starts[number]]
        except (OSError, KeyError, RuntimeError) as error:
            shard = schema.shard_path(self.path, number)
            raise ArchiveError(f"{shard}: damaged at row {index} of {name} ({error})") from error
        return row

    def read_index(self, name: str) -> Array:
        """Return a whole small dataset of archive.h5 (statistics)."""
        values: Array = self._index[name][()]
        return values

    def _shard(self, number: int) -> h5py.File:
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        file = _open(schema.shard_path(self.path, number))
        if file.attrs.get("fingerprint") != self.manifest.fingerprint:
            raise ArchiveError(f"{file.filename}: belongs to another archive")
        self._files[number] = file
        if len(self._files) > _OPEN_SHARDS:
            self._files.popitem(last=False)[1].close()
        return file

    def _read_samples(self) -> list[StoredSample]:
        group = self._index[schema.SAMPLES_GROUP]
        columns = [group[name].asstr()[()] for name in ("id", "label_name", "path", "error")]
        rows = zip(*columns, group["label"][()], strict=True)
        samples = [
            StoredSample(
                index=i, id=name, label=int(label), label_name=label_name, path=path, error=error
            )
            for i, (name, label_name, path, error, label) in enumerate(rows)
        ]
        if self.manifest.samples and [sample.id for sample in samples] != list(
            self.manifest.samples
        ):
            raise ArchiveError(f"{self.path}: the sample table does not agree with the manifest")
        return samples


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

    def __getitem__(self, index: int) -> Array:
        """Return one sample's activation, `entry.axes`, as stored.

        All NaN where the sample was skipped.
        """
        index = index + len(self) if index < 0 else index
        return self._archive.read_row(f"{schema.layer_group(self.name)}/{schema.ACTIVATION}", index)

    @property
    def statistics(self) -> dict[str, Array]:
        """Figures per channel over the dataset.

        Count mean std min max zero_fraction nonfinite_count.
        """
        base = f"{schema.layer_group(self.name)}/{schema.STATISTICS_GROUP}"
        names = ("count", "mean", "std", "min", "max", "zero_fraction", "nonfinite_count")
        return {name: self._archive.read_index(f"{base}/{name}") for name in names}


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        raise ArchiveError(f"{path}: cannot be read as HDF5 ({error})") from error
