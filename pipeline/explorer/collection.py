"""Collection of open archives; resolves the names in URLs to archives, layers and samples."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.archive_names import archive_names, set_apart
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.natural_order import natural_order
from pipeline.explorer.cache import LRUCache
from pipeline.gallery.pages import label_of
from pipeline.rendering.file_names import folder_name, layer_folders, sample_stem
from pipeline.rendering.views import SampleView, sample_view

_RESULT_BYTES = 192 * 2**20
_ROW = re.compile(r"(\d{1,9})(-|$)")


class NotFound(Exception):
    """The collection lacks what a URL names."""


class ArchiveView:
    """One archive and the URL names of its layers and samples.

    Attributes:
        key: key of the archive in URLs.
        title: short name that distinguishes it from the other archives.
        layers: folder name → layer, in execution order.
        labels: distinct labels in natural order.
        stored: rows of the samples that were not skipped.
        results: cache of statistics, columns and results over the dataset.
    """

    def __init__(self, key: str, title: str, archive: Archive) -> None:
        self.key, self.title, self.archive = key, title, archive
        folders = layer_folders(archive.manifest.layers)
        self.layers = {folders[name]: layer for name, layer in archive.layers.items()}
        self.folders = folders
        self.samples = archive.samples
        self._labels = [label_of(sample) for sample in self.samples]
        self.labels = sorted({label for label in self._labels if label}, key=natural_order)
        self.stored = np.flatnonzero(archive.stored)
        self.results = LRUCache(_RESULT_BYTES)

    def layer(self, folder: str) -> StoredLayer:
        """Return a layer by its folder name in the gallery."""
        if folder not in self.layers:
            raise NotFound(f"no layer {folder!r}")
        return self.layers[folder]

    def sample(self, stem: str) -> StoredSample:
        """Return a sample by its row, or by its file stem in the gallery."""
        match = _ROW.match(stem)
        if not match or int(match[1]) >= len(self.samples):
            raise NotFound(f"no sample {stem!r}")
        return self.samples[int(match[1])]

    def stem(self, row: int) -> str:
        """Return the name of a sample in URLs."""
        return sample_stem(row, self.samples[row].id)

    def spread(self, limit: int) -> Array:
        """Return at most `limit` evenly spaced rows of samples that were not skipped."""
        if len(self.stored) <= limit:
            return self.stored
        indices = np.linspace(0, len(self.stored) - 1, limit).astype(int)
        return np.asarray(self.stored[indices])

    def find(self, text: str, label: str) -> Sequence[int]:
        """Return the rows with a label whose id contains a text, ignoring case."""
        if not text and not label:
            return range(len(self.samples))
        needle = unicodedata.normalize("NFC", text).casefold()
        return [
            row
            for row, sample in enumerate(self.samples)
            if (not label or self._labels[row] == label) and needle in sample.id.casefold()
        ]

    def column(self, layer: StoredLayer, figure: str, channel: int) -> Array:
        """Return `sample_max` or `sample_mean` of a channel, `(sample,)` float32.

        NaN where a sample was skipped or has no finite value.
        """
        rows = schema.activation_rows(layer.name)
        if not layer.entry.vector:
            rows = schema.statistic(layer.name, figure)

        def read() -> Array:
            values = self.archive.read_rows(rows, 0, len(self.archive), (channel,))
            return np.where(np.isfinite(values), values, np.nan).astype(np.float32)

        return self.results.get((rows, channel), read)

    def statistics(self, layer: StoredLayer) -> dict[str, Array]:
        """Return a layer's statistics over the dataset (cached)."""
        return self.results.get(("statistics", layer.name), lambda: layer.statistics)

    def view(self, sample: StoredSample, layers: Sequence[StoredLayer]) -> SampleView:
        """Return a view of a sample and some of its layers for the renderers."""
        statistics = {layer.name: self.statistics(layer) for layer in layers}
        return sample_view(self.archive, sample, statistics, layers)


class Collection:
    """Archives of the explorer by key."""

    def __init__(self, archives: Sequence[Archive]) -> None:
        names = archive_names([archive.path for archive in archives])
        views = map(ArchiveView, map(folder_name, names), set_apart(names), archives)
        self.archive_views = {view.key: view for view in views}

    def archive_view(self, key: str) -> ArchiveView:
        """Return the archive of a key, or raise `NotFound`."""
        if key not in self.archive_views:
            raise NotFound(f"no archive {key!r}")
        return self.archive_views[key]
