"""Texts of pictures are switched off for slides, in every renderer alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.archive.reader import Archive
from pipeline.renderers import Renderer
from pipeline.renderers.compare import Compare
from pipeline.renderers.filters import Filters
from pipeline.renderers.grid import Grid
from pipeline.renderers.histogram import Histogram
from pipeline.renderers.mean_map import MeanMap
from pipeline.renderers.overview import Overview
from pipeline.renderers.pca import PCA
from pipeline.renderers.top_samples import TopSamples
from pipeline.rendering.picture_formats import FigureFormat, PictureFormat, encode, encode_figure
from pipeline.rendering.sheet import Titles
from pipeline.rendering.views import sample_view


@pytest.mark.parametrize(
    "kind", [Grid, MeanMap, PCA, Overview, TopSamples, Filters, Histogram, Compare]
)
def test_texts_are_switched_off_in_every_renderer(
    kind: type[Renderer], opened: Archive, tiny_archive: Path
) -> None:
    def texts(titles: str) -> list[str]:
        options = {"archives": (str(tiny_archive),)} if kind is Compare else {}
        renderer = kind(titles=titles, **options).prepare(opened, Path())
        found = [*renderer.draw(sample_view(opened, opened.samples[0]))]
        found += renderer.draw_archive(opened)
        for other in renderer.opened:
            other.close()
        assert found
        sheets: list[Any] = [picture.drawing for picture in found]
        return [text.text for sheet in sheets for text in sheet.texts]

    everything = texts("all")
    headline, maps, none = texts("headline"), texts("maps"), texts("none")
    assert headline
    assert maps
    if kind is Histogram:  # whose axes keep their numbers
        assert headline == everything
        assert maps == none
        assert len(everything) == len(maps) + 2 * len(opened.layers)
        return
    assert sorted(headline + maps) == sorted(everything)
    assert none == []


def test_grids_titles_are_still_true_or_false() -> None:
    assert Grid(titles=False).titles is Titles.HEADLINE  # type: ignore[arg-type]
    assert Grid(titles=True).titles is Titles.ALL  # type: ignore[arg-type]


def test_a_grid_of_all_maps(opened: Archive) -> None:
    for name, layer in opened.layers.items():
        sample = sample_view(opened.with_layers([name]), opened.samples[1])
        picture = Grid(maps="all", columns=3, cell=8).draw_layer(sample.layers[0], sample)
        count = layer.entry.channels
        if len(layer.shape) == 4:
            assert picture.paper.shape == (
                Grid(maps=count, columns=3, cell=8).draw_layer(sample.layers[0], sample).paper.shape
            )
    sample = sample_view(opened, opened.samples[0])
    grid = Grid(maps="all", columns=30, cell=64)
    texts = [text.text for text in grid.draw_layer(sample.layers[0], sample).texts]
    assert any("4 of 4 maps" in text for text in texts)


@pytest.mark.parametrize(
    "name", ["a\nb\r\x1c\x85\u2029c", "😀 é\u0301 \u202eabc", "$\\frac{$ %d & <b>"]
)
def test_no_name_is_too_odd_to_be_drawn(name: str, opened: Archive) -> None:
    """Line breaks and paragraph separators cannot be measured as text."""
    view = replace(sample_view(opened, opened.samples[0]), id=name, label_name=name)
    for picture in Grid().prepare(opened, Path()).draw(view):
        assert encode(picture.drawing, PictureFormat.PNG)
        for kind in FigureFormat:
            assert encode_figure(picture.drawing, kind)
