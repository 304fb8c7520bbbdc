"""The index of an archive: sample table, statistics and filters."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property, partial
from typing import Any

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.samples import Samples
from pipeline.archive.format.statistics import Statistics, merge
from pipeline.common.arrays import Array
from pipeline.common.errors import ArchiveError


class Index:
    """The content of an archive apart from its rows, read on first use.

    Args:
        manifest: of the archive.
        open_files: returns archive.h5 or a packed file, or shards to merge.
        merged: whether they are shards.
    """

    def __init__(
        self, manifest: Manifest, open_files: Callable[[], Sequence[ArchiveFile]], *, merged: bool
    ) -> None:  # fmt: skip
        self._manifest, self._open, self._merged = manifest, open_files, merged

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments: the receiving process opens the files itself."""
        return partial(type(self), merged=self._merged), (self._manifest, self._open)

    @cached_property
    def _files(self) -> Sequence[ArchiveFile]:
        return self._open()

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """The columns `schema.SAMPLE_COLUMNS` of the sample table."""
        tables = [file.columns() for file in self._files]
        columns = {
            name: [value for table in tables for value in table[name]]
            for name in schema.SAMPLE_COLUMNS
        }
        if columns["id"] != list(self._manifest.samples):
            path = self._files[0].path
            raise ArchiveError(f"{path}: the sample table does not match the manifest")
        return columns

    @cached_property
    def samples(self) -> Samples:
        """The sample table."""
        return Samples(self.columns)

    def statistics(self, layer: LayerEntry) -> dict[str, Array]:
        """Return `schema.STATISTICS` → figures per channel, `(channel,)`."""
        if self._merged:
            stored = int((self.samples.status == schema.STATUS_STORED).sum())
            merged = merge([_statistics(file, layer.name) for file in self._files])
            return merged.figures(layer.positions_per_sample * stored)
        (file,) = self._files
        return {name: file.table(schema.statistic(layer.name, name)) for name in schema.STATISTICS}

    def rounding(self, layer: LayerEntry) -> float | None:
        """Return the largest relative error of the stored type; None for float32."""
        errors = (file.footer.rounding.get(layer.name) for file in self._files)
        return max((error for error in errors if error is not None), default=None)

    def filters(self) -> dict[str, Array]:
        """Return layer → weights; see `Archive.filters`."""
        return self._files[0].filters()


def _statistics(shard: ArchiveFile, layer: str) -> Statistics:
    names = [item.name for item in fields(Statistics)]
    return Statistics(*(shard.table(schema.statistic(layer, name)) for name in names))
