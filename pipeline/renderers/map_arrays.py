"""Map arrays: mean maps and PCA projections as arrays over samples."""

from collections.abc import Sequence

import numpy as np

from pipeline.archive.reading.archive import Archive, opened
from pipeline.archive.reading.indexing import row_numbers
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, LayerError, member, whole
from pipeline.common.places import Place
from pipeline.common.progress import Progress
from pipeline.renderers.mean_map import OverChannels, over_channels
from pipeline.rendering.projection import fit_layer
from pipeline.rendering.views import layer_view


def channel_maps(
    archive: Archive | str | Place,
    layer: str,
    rows: Sequence[int] | None = None,
    statistic: str = "mean",
) -> Array:
    """Return a statistic over channels at every position, `(sample, height, width)` float32.

    Args:
        archive: an open archive, or its path.
        layer: name or alias of a layer with positions; tokens are placed in their grid.
        rows: sample rows, or a mask of all; None selects all samples that were not skipped.
        statistic: `mean`, `max`, `std` or `norm` of the finite values.

    Raises:
        LayerError: if the layer does not exist or has no positions.
        ConfigError: if the statistic is unknown, or a row does not exist.
    """
    with opened(archive) as archive:
        name = _with_positions(archive, layer)
        reduction = member(OverChannels, statistic, "channel_maps: unknown statistic")
        views = (layer_view(archive.layers[name], row) for row in _chosen(archive, rows))
        return np.stack([over_channels(view, reduction).astype(np.float32) for view in views])


def pca_maps(
    archive: Archive | str | Place,
    layer: str,
    rows: Sequence[int] | None = None,
    components: int = 3,
) -> Array:
    """Return the scores of a PCA fitted to all positions of the dataset,
    `(sample, height, width, component)` float32; NaN where a channel is not finite.

    Args:
        archive: an open archive, or its path.
        layer: name or alias of a layer with positions.
        rows: sample rows, or a mask of all; None selects all samples that were not skipped. The fit
            always uses all.
        components: number of components, ordered by explained variance.

    Raises:
        LayerError: if the layer does not exist or has no positions.
        ConfigError: if a row does not exist, or `components` is less than 1.
    """
    with opened(archive) as archive:
        name = _with_positions(archive, layer)
        components = whole("components:", components, 1)
        all_rows = _chosen(archive, None)
        with Progress("fit", 2 * len(all_rows), unit="activations") as progress:
            projection = fit_layer(archive.layers[name], all_rows, components, 0, 0, progress)
        maps = []
        for row in _chosen(archive, rows):
            values = layer_view(archive.layers[name], row).maps
            positions = np.moveaxis(values, 0, -1).reshape(-1, len(values))
            scores = projection(np.where(np.isfinite(positions), positions, np.nan))
            maps.append(scores.reshape(*values.shape[1:], components).astype(np.float32))
        return np.stack(maps)


def _with_positions(archive: Archive, layer: str) -> str:
    entry = archive.layer(layer).entry
    if entry.vector:
        raise LayerError(f"{layer}: a vector, which has no positions; choose layers with maps")
    return entry.name


def _chosen(archive: Archive, rows: Sequence[int] | None) -> list[int]:
    chosen = row_numbers(archive.stored if rows is None else rows, len(archive))
    if not chosen:
        raise ConfigError("rows: no sample is selected")
    return list(chosen)
