"""Compare: the same sample in several archives side by side, in one picture per sample.

Layers of the same name share a colour range. The differences from the first archive follow each
other archive.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.archive_names import archive_names, set_apart
from pipeline.common.arrays import Array
from pipeline.common.configured import Columns, TileSize, configured
from pipeline.common.errors import ArchiveError, ConfigError, one_line
from pipeline.common.paths import PathTexts
from pipeline.renderers.mean_map import MeanMap, memoized
from pipeline.renderers.pca import PCA
from pipeline.rendering.drawing.colormaps import (
    SIGNED,
    Colormap,
    Scale,
    limits,
    resolved,
    symmetric,
)
from pipeline.rendering.drawing.text_and_resize import placeholder
from pipeline.rendering.drawing.tile_layout import Tile, blank_tile
from pipeline.rendering.renderer import Picture, Renderer
from pipeline.rendering.views import LayerView, SampleView, input_tile, sample_view

Statistics = Mapping[str, Mapping[str, Array]]
_SCORES = re.compile(r"output(\[logits\])?|fc|classifier|head|heads\.head|head\.fc")
"""Names of layers that return class scores; `output` may also return features."""


@configured
class Compare(Renderer):
    """One block per archive: the model's input, its layers, then their differences.

    Samples are matched by id. Mean maps of layers of the same name share a colour range across
    archives. Differences are mean maps (or vectors) minus those of the first archive, where the
    sizes agree. The predicted class is shown with the input if the archive holds the classifier's
    output: layer `output`, or a linear layer with a usual name (`fc`, `head`, `classifier`, …).

    Attributes:
        archives: paths of the other archives; the rendered archive comes first.
        show: `mean` (the mean map) or `pca` (fitted to each sample, without differences).
        difference: whether to draw differences.
        columns: maximum number of tiles per row; a longer block continues in the next row.
        colormap, scale: colormap and scale of the mean maps.
        tile_size: pixels of the longer side of each tile.
    """

    archives: PathTexts = ()
    show: Literal["mean", "pca"] = "mean"
    difference: bool = True
    columns: Columns = 7
    colormap: Colormap = "viridis"
    scale: Scale = "linear"
    tile_size: TileSize = 160

    def __post_init__(self) -> None:
        if self.show == "pca":
            self.unused("with show=pca", "difference", "colormap", "scale")

    def dependencies(self) -> dict[str, str]:
        with ExitStack() as stack:
            archives = self._opened(stack)
            return {path: archive.manifest.fingerprint for path, archive in archives.items()}

    def prepare(self, archive: Archive, folder: Path, stack: ExitStack) -> Renderer:
        ids = {sample.id for sample in archive.samples}
        others = {}
        for path, other in self._opened(stack).items():
            samples = {sample.id: sample for sample in other.samples if sample.id in ids}
            if not samples:
                raise ConfigError(f"archives: {path} holds no sample of {archive.path}")
            statistics = {layer.name: layer.statistics for layer in other.layers.values()}
            others[path] = (other, samples, statistics)
        archives = [archive, *(other for other, _, _ in others.values())]
        names = _titles(archives)
        classes = {
            name: {s.label: s.label_name for s in opened.samples if s.label >= 0}
            for name, opened in zip(names, archives, strict=True)
        }
        return _OpenedCompare(
            **vars(self), others=others, names=names, model=_common_model(archives), classes=classes
        )

    def _opened(self, stack: ExitStack) -> dict[str, Archive]:
        if not self.archives:
            raise ConfigError(
                "archives: name the other archives, as in renderers.compare.archives=[PATH]"
            )
        try:
            return {path: stack.enter_context(Archive.open(path)) for path in self.archives}
        except ArchiveError as error:
            raise ConfigError(f"archives: {error}") from None


@dataclass(frozen=True, kw_only=True)
class _OpenedCompare(Compare):
    """Comparison with open archives.

    Attributes:
        others: path → (archive, id → sample, layer → statistics) of the other archives.
        names: titles of all archives, including the first.
        model: model title for the caption; empty if the archives have different models.
        classes: archive title → label → label name.
    """

    others: Mapping[str, tuple[Archive, Mapping[str, StoredSample], Statistics]]
    names: Sequence[str]
    model: str
    classes: Mapping[str, Mapping[int, str]]

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        views: list[SampleView | str] = [sample]
        for archive, samples, statistics in self.others.values():
            stored = samples.get(sample.id)
            if stored is None:
                views.append("not in this archive")
            elif stored.error:
                views.append(f"skipped: {one_line(stored.error)}")
            else:
                views.append(sample_view(archive, stored, statistics))
        ranges = Ranges([view for view in views if isinstance(view, SampleView)])
        blocks = []
        for name, view in zip(self.names, views, strict=True):
            if isinstance(view, str):
                blocks.append([Tile(pixels=placeholder("", self.tile_size), title=name, note=view)])
                continue
            blocks.append(self._block(name, view, ranges))
            if view is not sample and self.difference and self.show == "mean":
                blocks += self._differences(view, ranges)
        widest = max(len(block) for block in blocks)
        columns = min(self.columns, widest)
        tiles: list[Tile] = []
        for block in blocks:
            tiles += [*block, *[blank_tile(self.tile_size)] * (-len(block) % columns)]
        content = f"mean over channels ({self.colormap}, one range per layer in all archives)"
        if self.show == "pca":
            content = "PCA fitted to the sample (red, green, blue; % of variance)"
        note = f"{len(views)} archives, each: what the model saw, then its layers · {content}"
        titled = replace(sample, model=self.model)
        yield Picture(layer=None, drawing=self.composed(titled, tiles, columns, "compare", note))

    def _block(self, name: str, sample: SampleView, ranges: Ranges) -> list[Tile]:
        note = _predicted(sample, self.classes[name])
        image = input_tile(sample, self.tile_size, title=name, note=note)
        return [image, *(self._tile(layer, sample, ranges) for layer in sample.layers)]

    def _tile(self, layer: LayerView, sample: SampleView, ranges: Ranges) -> Tile:
        if self.show == "pca":
            return PCA(tile_size=self.tile_size).tile(layer)
        signed, span = layer.name in ranges.signed, ranges.of_layer[layer.name]
        colormap, span = resolved(self.colormap, span, signed=signed)
        means = MeanMap(colormap=colormap, scale=self.scale, tile_size=self.tile_size)
        return means.tile(layer, sample, span)

    def _differences(self, view: SampleView, ranges: Ranges) -> list[list[Tile]]:
        means = MeanMap(colormap=SIGNED, tile_size=self.tile_size)
        changes = [ranges.difference(layer) for layer in view.layers]
        if all(change is None for change in changes):
            return []
        tiles = [blank_tile(self.tile_size, "difference", f"minus {self.names[0]}")]
        for layer, change in zip(view.layers, changes, strict=True):
            if change is None:
                tiles.append(blank_tile(self.tile_size, layer.alias, "not comparable"))
            else:
                changed = replace(layer, maps=change)
                tiles.append(means.tile(changed, view, ranges.of_difference[layer.name]))
        return [tiles]


def _predicted(sample: SampleView, classes: Mapping[int, str]) -> str:
    """Return a text naming the class with the largest score; empty without class scores."""
    layer = next((view for view in sample.layers[::-1] if _SCORES.fullmatch(view.name)), None)
    if layer is None or not layer.vector or layer.channels < 2:
        return ""
    scores = layer.maps[:, 0, 0]
    if not np.isfinite(scores).all():
        return "no predicted class: not finite"
    label = int(scores.argmax())
    same_classes = sorted(classes) == list(
        range(len(scores))
    )  # the model's classes are the dataset's
    name = f" ({classes[label]})" if same_classes and classes[label] else ""
    kind = "largest output" if layer.name == "output" else "predicted class"
    return f"{kind}: {label}{name}"


def _titles(archives: Sequence[Archive]) -> list[str]:
    """Return titles that distinguish the archives: by model, weights, name or several of these."""
    one_model = len({archive.manifest.model_name for archive in archives}) == 1
    titles = [
        archive.manifest.weights_title if one_model else archive.manifest.model_title
        for archive in archives
    ]
    if len(set(titles)) == len(titles):
        return titles
    names = set_apart(archive_names([archive.path for archive in archives]))
    if len(set(titles)) == 1:
        return names
    return [name if title in name else f"{title} · {name}"
            for title, name in zip(titles, names, strict=True)]  # fmt: skip


def _common_model(archives: Sequence[Archive]) -> str:
    """Return the archives' common model, with its notes if those are common too, or ''."""
    titles = {archive.manifest.model_title for archive in archives}
    models = {archive.manifest.model_name for archive in archives}
    return next((group.pop() for group in (titles, models) if len(group) == 1), "")


class Ranges:
    """Value ranges shared by layers of the same name in several archives.

    Attributes:
        of_layer: name → range of the mean maps or vectors.
        of_difference: name → range of all differences from the first archive, symmetric around 0.
        signed: names of layers with negative values.
    """

    def __init__(self, views: Sequence[SampleView]) -> None:
        """Compute the ranges of one sample's views, one per archive, the first archive's first."""
        self._first = {layer.name: layer for layer in views[0].layers}
        layers = [layer for view in views for layer in view.layers]
        self.signed = {layer.name for layer in layers if layer.signed}
        values, differences = defaultdict(list), defaultdict(list)
        for layer in layers:
            values[layer.name].append(_values(layer).ravel())
            if (change := self.difference(layer)) is not None:
                differences[layer.name].append(change.ravel())
        self.of_layer = {name: limits(np.concatenate(all_)) for name, all_ in values.items()}
        self.of_difference = {
            name: symmetric(limits(np.concatenate(all_))) for name, all_ in differences.items()
        }

    def difference(self, layer: LayerView) -> Array | None:
        """Return the mean map (or vector) minus the first archive's; None if the sizes differ.

        Returns:
            float64 `(1, height, width)`, or `(channel, 1, 1)` for a vector.
        """
        first = self._first.get(layer.name)
        if first is None or first.vector != layer.vector:
            return None
        values, first_values = _values(layer).astype(np.float64), _values(first).astype(np.float64)
        if values.shape != first_values.shape:
            return None
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            return np.asarray(values - first_values)


def _values(layer: LayerView) -> Array:
    """Return the mean map `(1, height, width)`, or a vector `(channel, 1, 1)`."""
    if layer.vector:
        return layer.maps
    return memoized(layer)[None]
