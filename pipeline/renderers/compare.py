"""Compare: the same sample in several archives side by side, in one picture per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from pipeline.archive.reader import Archive
from pipeline.archive.samples import StoredSample
from pipeline.foundation.configured import Positive, configured
from pipeline.foundation.errors import ArchiveError, ConfigError, one_line
from pipeline.foundation.paths import PathTexts
from pipeline.renderers.mean_map import MeanMap
from pipeline.renderers.pca import PCA
from pipeline.rendering.canvas import PAPER, fit, placeholder, size_of
from pipeline.rendering.colormaps import Colormap, Scale
from pipeline.rendering.renderer import Picture, Renderer
from pipeline.rendering.sheet import Tile, compose
from pipeline.rendering.views import LayerView, SampleView, caption, sample_view


class LayerPicture(StrEnum):
    """What stands for a layer: its mean map or its PCA projection."""

    MEAN = "mean"
    PCA = "pca"


@configured
class Compare(Renderer):
    """A block for each archive: what its model saw, then its layers.

    Samples are the same where their ids are.

    Attributes:
        archives: paths of the others; the archive that is rendered comes first.
        show: `mean` (the mean map) or `pca`, fitted to each sample.
        columns: tiles per row, at most; a block with more layers goes on in the next row.
        colormap, scale: of the mean maps.
        cell: pixels of the longer side of each tile.
    """

    archives: PathTexts = ()
    show: LayerPicture = LayerPicture.MEAN
    columns: Positive = 7
    colormap: Colormap = "viridis"
    scale: Scale = Scale.LINEAR
    cell: Positive = 160

    def dependencies(self) -> dict[str, str]:
        """See `Renderer.dependencies`."""
        with ExitStack() as opened:
            archives = self._opened(opened)
            return {path: archive.manifest.fingerprint for path, archive in archives.items()}

    def prepare(self, archive: Archive, folder: Path) -> Renderer:
        """Return this renderer with the other archives open.

        Raises:
            ConfigError: when one cannot be opened, or holds none of this archive's samples.
        """
        ids = {sample.id for sample in archive.samples}
        found = {}
        with ExitStack() as opened:  # closes them all where one does not fit
            for path, other in self._opened(opened).items():
                samples = {sample.id: sample for sample in other.samples if sample.id in ids}
                if not samples:
                    raise ConfigError(f"archives: {path} holds no sample of {archive.path}")
                found[path] = (other, samples)
            opened.pop_all()
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return _OpenedCompare(**values, found=found)

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
    """A comparison whose archives are open: path → archive, and id → sample."""

    found: Mapping[str, tuple[Archive, Mapping[str, StoredSample]]] = field(default_factory=dict)

    @property
    def opened(self) -> Sequence[Archive]:
        """See `Renderer.opened`."""
        return [archive for archive, _ in self.found.values()]

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        """Return one picture."""
        blocks = [self._block(sample.model, sample)]
        for path, (archive, samples) in self.found.items():
            name = archive.manifest.model_name
            if name == sample.model:
                name = f"{name} · {_short_name(path)}"
            stored = samples.get(sample.id)
            if stored is None:
                blocks.append(self._nothing(name, "not in this archive"))
            elif stored.error:
                blocks.append(self._nothing(name, f"skipped: {one_line(stored.error)}"))
            else:
                blocks.append(self._block(name, sample_view(archive, stored)))
        widest = max(len(block) for block in blocks)
        columns = min(self.columns, widest)
        blank = Tile(pixels=np.full((1, self.cell, 3), PAPER, dtype=np.uint8))
        tiles: list[Tile] = []
        for block in blocks:
            tiles += [*block, *[blank] * (-len(block) % columns)]
        what = f"mean over channels ({self.colormap}, range per map)"
        if self.show is LayerPicture.PCA:
            what = "PCA fitted to the sample (red, green, blue; % of variance)"
        note = f"{len(blocks)} archives, each: what the model saw, then its layers · {what}"
        sheet = compose(
            tiles,
            columns,
            caption=caption(replace(sample, model=""), "compare"),
            note=note,
            titles=self.titles,
        )
        yield Picture(layer=None, drawing=sheet)

    def _block(self, name: str, sample: SampleView) -> list[Tile]:
        image = Tile(pixels=fit(sample.image, self.cell), title=name, note=size_of(sample.image))
        return [image, *(self._tile(layer, sample) for layer in sample.layers)]

    def _tile(self, layer: LayerView, sample: SampleView) -> Tile:
        if self.show is LayerPicture.PCA:
            return PCA(cell=self.cell).tile(layer)
        means = MeanMap(colormap=self.colormap, scale=self.scale, cell=self.cell)
        return means.tile(layer, sample)

    def _nothing(self, name: str, why: str) -> list[Tile]:
        return [Tile(pixels=placeholder("", self.cell), title=name, note=why)]


def _short_name(path: str) -> str:
    """Return the part of an archive's path that tells it from others: not the usual `archive`."""
    parts = [part for part in Path(path).parts if part != "archive"]
    return parts[-1] if parts else path
