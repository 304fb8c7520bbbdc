"""The index: archive.h5, or a packed file, as the sample table, statistics and filters."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import h5py

from pipeline.archive import schema
from pipeline.archive.complete import Complete
from pipeline.archive.layout import read_filters
from pipeline.archive.manifest import Manifest
from pipeline.archive.safety import damage_named, open_safely
from pipeline.archive.samples import Samples, StoredSample
from pipeline.foundation.arrays import Array
from pipeline.foundation.atomic_files import file_sha256
from pipeline.foundation.errors import ArchiveError


class Index:
    """A file that is opened when something of it is first asked for."""

    def __init__(self, path: Path, *, expected: str | None, packed: bool) -> None:
        """Open nothing yet.

        Args:
            path: of the file.
            expected: its sha256; None compares nothing.
            packed: whether it holds the rows too, and was checked.
        """
        self.path, self._expected, self._packed = path, expected, packed
        self._lock = threading.Lock()  # render threads share one archive
        self._opened: h5py.File | None = None
        self._samples: Samples | None = None

    @property
    def file(self) -> h5py.File:
        """The opened file.

        Raises:
            ArchiveError: when it is damaged.
        """
        with self._lock:
            if self._opened is None:
                if self._expected is not None and file_sha256(self.path) != self._expected:
                    raise ArchiveError(
                        f"{self.path}: damaged, its content is not what was written (sha256)"
                    )
                self._opened = open_safely(self.path, virtual=not self._packed, own=self._packed)
            return self._opened

    def close(self) -> None:
        """Close it."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()

    def samples(self, manifest: Manifest) -> Samples:
        """Return the sample table, read once.

        Raises:
            ArchiveError: when it is damaged, or not the manifest's.
        """
        if self._samples is None:
            found = self._read_samples()
            if manifest.samples and [sample.id for sample in found] != list(manifest.samples):
                raise ArchiveError(
                    f"{self.path}: the sample table does not agree with the manifest"
                )
            self._samples = Samples(found)
        return self._samples

    def read(self, name: str) -> Array:
        """Return a whole small dataset.

        Raises:
            ArchiveError: when it cannot be read.
        """
        with damage_named(f"{self.path}: damaged at {name}"):
            values: Array = self.file[name][()]
        return values

    def rounding(self, layer: str) -> float | None:
        """Return `schema.ROUNDING` of a layer, None where there is none."""
        with damage_named(f"{self.path}: damaged at {layer}"):
            found = self.file[schema.activation_rows(layer)].attrs.get(schema.ROUNDING)
        return None if found is None else float(found)

    def filters(self, image_channels: int) -> dict[str, Array]:
        """Return layer → weights; see `Archive.filters`."""
        with damage_named(f"{self.path}: damaged filters"):
            return read_filters(self.file, image_channels)

    def _read_samples(self) -> list[StoredSample]:
        with damage_named(f"{self.path}: damaged sample table"):
            group = self.file[schema.SAMPLES_GROUP]
            texts = ["id", "label_name", "path", "error", "pixels_sha256"]
            columns = {name: group[name].asstr()[()] for name in texts if name in group}
            columns["label"] = group["label"][()].tolist()
            rows = zip(*columns.values(), strict=True)
            return [
                StoredSample(index=i, **dict(zip(columns, row, strict=True)))
                for i, row in enumerate(rows)
            ]


def of_packed(path: Path) -> tuple[Manifest, Complete]:
    """Return what a packed file is of: one shard of all samples.

    Raises:
        ArchiveError: when it is none.
    """
    with open_safely(path) as file, damage_named(f"{path}: no packed archive"):
        table = file[schema.SAMPLES_GROUP]
        status, ids = table["status"][()], table["id"].asstr()[()]
        manifest = Manifest.from_json(file[schema.MANIFEST_TEXT].asstr()[()], where=path)
        manifest = replace(manifest, samples=list(ids), shards=[(0, len(ids))], earlier=())
    return manifest, Complete(
        fingerprint=manifest.fingerprint,
        samples=len(ids),
        skipped=int((status == schema.STATUS_SKIPPED).sum()),
        shards=1,
        bytes=path.stat().st_size,
        files={},
    )
