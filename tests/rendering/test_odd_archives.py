"""Pictures of unusual archives: incomplete ones, and values at the ends of float32."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from pipeline.archive.reading.archive import Archive
from pipeline.renderers.grid import Grid
from pipeline.renderers.histogram import Histogram
from pipeline.renderers.pca import PCA
from pipeline.rendering.drawing.colormaps import Scale, normalize
from pipeline.rendering.drawing.text_and_resize import width_of
from pipeline.rendering.options import RenderOptions
from pipeline.rendering.render import render
from tests.helpers.random_archives import archive_of, random
from tests.helpers.views_and_pixels import layer, maps, sample

_DARK = (59, 82, 139)


def test_pictures_of_a_partial_archive_are_redrawn_once_it_is_complete(tmp_path: Path) -> None:
    values = random(6, 4, 3, 3) * np.array([1, 1, 1, 1, 100, 100], np.float32)[:, None, None, None]
    complete = archive_of(tmp_path / "complete", {"maps": values}, shards=3)
    growing = tmp_path / "growing"
    shutil.copytree(complete, growing)
    later = ("COMPLETE.json", "archive.h5", "shards/00002.h5")
    for name in later:
        (growing / name).unlink()
    renderers = {"grid": Grid(normalize="dataset"), "pca": PCA(fit="dataset"), "bins": Histogram()}  # type: ignore[arg-type]
    options = RenderOptions(partial=True, num_workers=0)
    render(growing, tmp_path / "drawn", renderers, options)
    for name in later:
        shutil.copy(complete / name, growing / name)
    render(growing, tmp_path / "drawn", renderers, options)
    render(growing, tmp_path / "fresh", renderers, options)
    fresh = sorted((tmp_path / "fresh").rglob("*.png"))
    assert len(fresh) == 6 + 6 + 1
    for path in fresh:
        again = tmp_path / "drawn" / path.relative_to(tmp_path / "fresh")
        assert again.read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("scale", get_args(Scale))
def test_values_near_the_smallest_float32_have_their_colours(scale: Scale) -> None:
    ordinary = np.array([0, 1, 2, 3], np.float32)
    tiny = (ordinary * 2.0**-149).astype(np.float32)
    found = normalize(tiny, 0, float(tiny[-1]), scale)
    np.testing.assert_allclose(found, normalize(ordinary, 0, 3, scale), atol=1e-6)


def _bar_heights(archive: Path, bins: int) -> np.ndarray:
    with Archive.open(archive) as opened:
        pixels = next(Histogram(bins=bins).draw_archive(opened)).rgb[78:350, 56:530]
    return np.asarray((pixels == _DARK).all(axis=2).sum(axis=0))


@pytest.mark.parametrize("value", [1e17, 1e30, -3e38])
def test_a_constant_layer_of_any_magnitude_has_a_histogram(tmp_path: Path, value: float) -> None:
    maps = np.full((2, 3, 2, 2), value, np.float32)
    heights = _bar_heights(archive_of(tmp_path / "archive", {"maps": maps}), 4)
    bars = np.flatnonzero(heights)
    assert len(bars) == pytest.approx(474 / 4, abs=12)  # one bin holds everything


def test_a_histogram_of_more_bins_than_pixels_shows_the_fullest(tmp_path: Path) -> None:
    values = np.concatenate([np.linspace(0, 1, 600), np.full(5000, 0.30052)])
    maps = values.astype(np.float32).reshape(1, 1, 70, 80)
    archive = archive_of(tmp_path / "archive", {"maps": maps})
    heights = _bar_heights(archive, 2000)
    assert abs(heights.argmax() / 474 - 0.3) < 0.06
    assert heights.max() > 2 * np.median(heights[heights > 0])


@pytest.mark.parametrize(("tile_size", "columns"), [(1, 1), (16, 1), (64, 2), (224, 4)])
def test_both_ends_of_a_colour_bar_are_within_the_picture(tile_size: int, columns: int) -> None:
    values = maps() * np.float32(1e-5)
    picture = Grid(
        max_channels=4, columns=columns, tile_size=tile_size, normalize="layer", colorbar=True
    ).draw_layer(layer(values), sample())
    low, high = picture.texts[-2:]
    assert (low.text, high.text) == (f"{values.min():.3g}", f"{values.max():.3g}")
    assert low.x + width_of(low.text, low.size) < high.x
    assert high.x + width_of(high.text, high.size) <= picture.paper.shape[1]
    bar = picture.paper[high.y + 4]
    assert bar[bar < 240].tolist() == sorted(bar[bar < 240])
    assert set(bar[bar < 240]) >= {0}
