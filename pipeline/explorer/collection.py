"""The collection: opened archives, and whatever a URL may name in them, found by looking it up."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.archive_names import set_apart
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.natural_order import natural_order
from pipeline.explorer.cache import Kept
from pipeline.gallery.pages import label_of
from pipeline.rendering.file_names import folder_name, layer_folders, sample_stem
from pipeline.rendering.views import SampleView, sample_view

_COLUMN_BYTES = 64 * 2**20
_RESULT_BYTES = 128 * 2**20
_ROW = re.compile(r"(\d{1,9})(-|$)")


class NotFound(Exception):
    """What a URL names and the collection does not have."""


class ArchiveView:
    """One archive, with the names that URLs have for its parts.

    Attributes:
        key: of the archive.
        title: what sets it apart from the others.
        layers: folder name → layer, in execution order.
        labels: all there are.
        stored: rows of the samples that were not skipped.
        results: what was computed over the dataset and is kept; each has `nbytes`.
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
        self._columns: Kept[Array] = Kept(_COLUMN_BYTES, lambda values: values.nbytes)
        self.results: Kept[Any] = Kept(_RESULT_BYTES, lambda result: result.nbytes)
        self._statistics: Kept[dict[str, Array]] = Kept(2**30, lambda _: 2**20)

    def layer(self, folder: str) -> StoredLayer:
        """Return a layer by the name of its folder, as the gallery has it."""
        if folder not in self.layers:
            raise NotFound(f"no layer {folder!r}")
        return self.layers[folder]

    def sample(self, stem: str) -> StoredSample:
        """Return a sample by its row, or its row and name, as the gallery's files have them."""
        found = _ROW.match(stem)
        if not found or int(found[1]) >= len(self.samples):
            raise NotFound(f"no sample {stem!r}")
        return self.samples[int(found[1])]

    def stem(self, row: int) -> str:
        """Return what a sample is called in URLs."""
        return sample_stem(row, self.samples[row].id)

    def spread(self, most: int) -> Array:
        """Return rows of samples that were not skipped, at most so many, evenly spaced."""
        if len(self.stored) <= most:
            return self.stored
        places = np.linspace(0, len(self.stored) - 1, most).astype(int)
        return np.asarray(self.stored[places])

    def find(self, text: str, label: str) -> Sequence[int]:
        """Return the rows whose id holds a text, in any case, and that have a label."""
        if not text and not label:
            return range(len(self.samples))
        wanted = unicodedata.normalize("NFC", text).casefold()
        return [
            row
            for row, sample in enumerate(self.samples)
            if (not label or self._labels[row] == label) and wanted in sample.id.casefold()
        ]

    def column(self, layer: StoredLayer, figure: str, channel: int) -> Array:
        """Return `sample_max` or `sample_mean` of a channel, `(sample,)` float32.

        NaN where a sample was skipped or holds no finite value.
        """
        rows = schema.activation_rows(layer.name)
        if not layer.entry.vector:
            rows = schema.statistic(layer.name, figure)

        def read() -> Array:
            values = self.archive.read_rows(rows, 0, len(self.archive), (channel,))
            return np.where(np.isfinite(values), values, np.nan).astype(np.float32)

        return self._columns.get((rows, channel), read)

    def statistics(self, layer: StoredLayer) -> dict[str, Array]:
        """Return a layer's figures over the dataset, read once."""
        return self._statistics.get(layer.name, lambda: layer.statistics)

    def view(self, sample: StoredSample, layers: Sequence[StoredLayer]) -> SampleView:
        """Return a sample with some of its layers, to be drawn."""
        statistics = {layer.name: self.statistics(layer) for layer in layers}
        return sample_view(self.archive, sample, statistics, layers)


class Collection:
    """All archives that are explored, by key."""

    def __init__(self, archives: Sequence[tuple[Path, Archive]]) -> None:
        names = [schema.name_of(path) for path, _ in archives]
        keys = [folder_name(name) for name in names]
        titles = set_apart(names) if len(set(names)) == len(names) else None
        seen = Counter[str]()
        self.shelves: dict[str, ArchiveView] = {}
        for number, ((path, archive), key) in enumerate(zip(archives, keys, strict=True)):
            seen[key] += 1
            title = titles[number] if titles else str(path)
            unique = key if seen[key] == 1 else f"{key}-{seen[key]}"
            self.shelves[unique] = ArchiveView(unique, title, archive)

    def shelf(self, key: str) -> ArchiveView:
        """Return an archive."""
        if key not in self.shelves:
            raise NotFound(f"no archive {key!r}")
        return self.shelves[key]
