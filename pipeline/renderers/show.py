"""Show: one picture of a stored sample for notebooks."""

from pipeline.archive.reading.archive import Archive, opened
from pipeline.common.errors import ConfigError
from pipeline.common.places import Place
from pipeline.renderers.attention import AttentionMaps
from pipeline.renderers.grid import Grid
from pipeline.renderers.overview import Overview
from pipeline.rendering.renderer import Picture
from pipeline.rendering.sample_selection import choose_rows
from pipeline.rendering.views import sample_view


def show(archive: Archive | str | Place, sample: int | str, *layers: str) -> Picture:
    """Return a picture of a stored sample: a grid of one layer's maps, its heads over the input if
    it is attention, or an overview of several layers.

    Args:
        archive: an open archive, or its path.
        sample: row, id, or id without its extension or folder.
        layers: names, aliases or globs; none selects all layers.

    Raises:
        ConfigError: if the sample does not exist or was skipped.
        LayerError: if a layer does not exist.
        ArchiveError: if the archive is damaged.
    """
    with opened(archive) as archive:
        rows = choose_rows(archive.samples.ids, [str(sample)], key="sample")
        if len(rows) > 1:
            raise ConfigError(f"sample: {sample!r} matches {len(rows)} samples; give one of them")
        stored = archive.samples[rows[0]]
        if stored.error:
            raise ConfigError(
                f"sample {stored.id}: has no activations, it was skipped: {stored.error}"
            )
        view = sample_view(archive.with_layers(layers), stored)
        if len(view.layers) > 1:
            return next(Overview().draw(view))
        heads = [*AttentionMaps().draw(view)]
        return heads[-1] if heads else next(Grid(colormap="auto").draw(view))
