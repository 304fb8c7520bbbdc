"""The index of an archive: sample table, statistics and filters.

Read from archive.h5 or a packed file (`FileIndex`), or merged from finished shards (`ShardIndex`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.samples import Samples
from pipeline.archive.format.statistics import ChannelStatistics, merge
from pipeline.common.arrays import Array
from pipeline.common.errors import ArchiveError
from pipeline.common.places import Place


class FileIndex:
    """The index in archive.h5 or a packed file, opened on first use."""

    def __init__(self, path: Place, manifest: Manifest, *, digest: str, check: bool) -> None:
        """Store the arguments; no file is opened.

        Args:
            path: of the file.
            manifest: of the archive.
            digest: of the file's footer, as listed in COMPLETE.json.
            check: whether to compare digests.
        """
        self.path, self._manifest, self._digest, self._check = path, manifest, digest, check
        self._lock = threading.Lock()  # render threads share one archive
        self._opened: ArchiveFile | None = None
        self._samples: Samples | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments: the receiving process opens the file itself."""
        make = partial(type(self), digest=self._digest, check=self._check)
        return make, (self.path, self._manifest)

    def samples(self) -> Samples:
        """Return the sample table, read once.

        Raises:
            ArchiveError: when the table is damaged or does not match the manifest.
        """
        if self._samples is None:
            samples = Samples(self._file().columns())
            if list(samples.ids) != list(self._manifest.samples):
                raise ArchiveError(f"{self.path}: the sample table does not match the manifest")
            self._samples = samples
        return self._samples

    def statistics(self, layer: LayerEntry) -> dict[str, Array]:
        """Return `schema.STATISTICS` → figures per channel, `(channel,)`."""
        file = self._file()
        return {name: file.table(schema.statistic(layer.name, name)) for name in schema.STATISTICS}

    def rounding(self, layer: LayerEntry) -> float | None:
        """Return the largest relative error of the stored type; None for float32."""
        return self._file().footer.rounding.get(layer.name)

    def filters(self) -> dict[str, Array]:
        """Return layer → weights; see `Archive.filters`."""
        return self._file().filters()

    def _file(self) -> ArchiveFile:
        with self._lock:
            if self._opened is None:
                self._opened = ArchiveFile(self.path, check=self._check, digest=self._digest)
            return self._opened


class ShardIndex:
    """The merged index of some shards."""

    def __init__(self, files: Sequence[ArchiveFile], manifest: Manifest) -> None:
        """Read the sample tables of the shards.

        Raises:
            ArchiveError: when a table is damaged.
        """
        self._files = files
        tables = [file.columns() for file in files]
        self.columns: Mapping[str, list[Any]] = {
            name: [value for table in tables for value in table[name]]
            for name in schema.SAMPLE_COLUMNS
        }
        self._manifest = manifest

    def samples(self) -> Samples:
        """See `FileIndex.samples`."""
        return Samples(self.columns)

    def statistics(self, layer: LayerEntry) -> dict[str, Array]:
        """See `FileIndex.statistics`."""
        return merge([read_statistics(file, layer.name) for file in self._files]).figures()

    def rounding(self, layer: LayerEntry) -> float | None:
        """See `FileIndex.rounding`."""
        return max(
            (f.footer.rounding[layer.name] for f in self._files if layer.name in f.footer.rounding),
            default=None,
        )

    def filters(self) -> dict[str, Array]:
        """See `FileIndex.filters`."""
        return self._files[0].filters()


Index = FileIndex | ShardIndex
"""Content of an archive apart from its rows."""


def read_statistics(shard: ArchiveFile, layer: str) -> ChannelStatistics:
    """Return a shard's statistics of a layer.

    Raises:
        ArchiveError: when the statistics are damaged.
    """
    return ChannelStatistics(
        **{f.name: shard.table(schema.statistic(layer, f.name)) for f in fields(ChannelStatistics)}
    )


def skipped_count(samples: Samples) -> int:
    """Return the number of skipped samples."""
    return int(np.count_nonzero(samples.status == schema.STATUS_SKIPPED))
