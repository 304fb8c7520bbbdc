"""Texts of pictures are switched off for slides, in every renderer alike."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.gallery.pages import write_gallery
from pipeline.models.tiny import TinyModel, tiny_network
from pipeline.renderers import Renderer
from pipeline.renderers.compare import Compare
from pipeline.renderers.filters import Filters
from pipeline.renderers.grid import Grid
from pipeline.renderers.histogram import Histogram
from pipeline.renderers.mean_map import MeanMap
from pipeline.renderers.overview import Overview
from pipeline.renderers.pca import PCA
from pipeline.renderers.thumbnails import Thumbnails
from pipeline.renderers.top_samples import TopSamples
from pipeline.rendering.drawing.picture_formats import (
    Plot,
    encode,
)
from pipeline.rendering.drawing.text_and_resize import TITLE_SIZE, width_of, wrap
from pipeline.rendering.drawing.tile_layout import Tile, compose
from pipeline.rendering.options import THUMBNAILS, FigureFormat
from pipeline.rendering.render import render
from pipeline.rendering.views import sample_view
from tests.conftest import tiny_extraction


def _texts(drawing: Any) -> list[str]:
    if isinstance(drawing, Plot):
        return [text.get_text() for text in drawing.figure().findobj(Text)]
    return [text.text for text in drawing.texts]


@pytest.mark.parametrize(
    "kind", [Grid, MeanMap, PCA, Overview, TopSamples, Filters, Histogram, Compare]
)
def test_texts_are_switched_off_in_every_renderer(
    kind: type[Renderer], opened: Archive, tiny_archive: Path
) -> None:
    def texts(titles: str) -> list[str]:
        options = {"archives": (str(tiny_archive),)} if kind is Compare else {}
        with ExitStack() as stack:
            renderer = kind(titles=titles, **options).prepare(opened, Path(), stack)
            found = [*renderer.draw(sample_view(opened, opened.samples[0]))]
            found += renderer.draw_archive(opened)
        assert found
        drawings: list[Any] = [picture.drawing for picture in found]
        if kind is Histogram:
            return [
                text.get_text() for drawing in drawings for text in drawing.plotted.findobj(Text)
            ]
        return [text.text for drawing in drawings for text in drawing.texts]

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
    assert Grid(titles=False).titles == "headline"  # type: ignore[arg-type]
    assert Grid(titles=True).titles == "all"  # type: ignore[arg-type]


def test_a_grid_of_all_maps(opened: Archive) -> None:
    for name, layer in opened.layers.items():
        sample = sample_view(opened.with_layers([name]), opened.samples[1])
        picture = Grid(max_channels="all", columns=3, tile_size=8).draw_layer(
            sample.layers[0], sample
        )
        count = layer.entry.channels
        if len(layer.shape) == 4:
            assert picture.paper.shape == (
                Grid(max_channels=count, columns=3, tile_size=8)
                .draw_layer(sample.layers[0], sample)
                .paper.shape
            )
    sample = sample_view(opened, opened.samples[0])
    grid = Grid(max_channels="all", columns=30, tile_size=64)
    texts = [text.text for text in grid.draw_layer(sample.layers[0], sample).texts]
    assert any("4 of 4 maps" in text for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["a\nb\r\x1c\x85\u2029c", "😀 é\u0301 \u202eabc", "$\\frac{$ %d & <b>"]
)
def test_no_name_is_too_odd_to_be_drawn(name: str, opened: Archive) -> None:
    """Line breaks and paragraph separators cannot be measured as text."""
    view = replace(sample_view(opened, opened.samples[0]), id=name, label_name=name)
    for picture in Grid().prepare(opened, Path(), ExitStack()).draw(view):
        assert encode(picture.drawing, "png")
        for kind in get_args(FigureFormat):
            assert encode(picture.drawing, kind)


def test_random_weights_are_named_wherever_the_model_is(tmp_path: Path) -> None:
    config = tiny_extraction(tmp_path / "archive", seed=3, model=TinyModel(weights=None))
    extract(config)
    title = "tiny (random weights, seed 3)"
    kinds = (Grid, MeanMap, PCA, Overview, TopSamples, Histogram, Filters, Compare)
    with Archive.open(tmp_path / "archive") as archive:
        assert title in repr(archive)
        assert title in archive._repr_html_()
        view = sample_view(archive, archive.samples[0])
        for kind in kinds:
            given = {"archives": (str(tmp_path / "archive"),)} if kind is Compare else {}
            large = {} if kind is Histogram else {"tile_size": 400}
            with ExitStack() as stack:
                renderer = kind(**given, **large).prepare(archive, tmp_path, stack)
                for picture in [*renderer.draw(view), *renderer.draw_archive(archive)]:
                    assert title in " ".join(_texts(picture.drawing)), kind
        drawn = render(archive, tmp_path / "out", {THUMBNAILS: Thumbnails()})
        index = write_gallery(archive, drawn)
        for page in (index, *(index.parent / "samples").iterdir()):
            assert title in page.read_text(), page
        some = archive.manifest.with_shards([0])
        count = len(some.samples)
        assert some.model_title == (
            f"tiny (random weights, seed 3; partial: {count} of {len(archive)} samples)"
        )


def test_compare_names_archives_by_the_weights_that_they_differ_in(tmp_path: Path) -> None:
    def archive(name: str, weights: str | None, seed: int = 0) -> Path:
        extract(
            tiny_extraction(
                tmp_path / name, seed=seed, model=TinyModel(weights=weights),
                dataset=Synthetic(samples=1, height=16, width=16),
                layers=LayerSelector(include=("fc",)),
            )
        )  # fmt: skip
        return tmp_path / name

    def said(first: Path, *others: Path) -> tuple[list[str], str]:
        with Archive.open(first) as opened, ExitStack() as stack:
            renderer = Compare(archives=tuple(map(str, others)), tile_size=400)
            renderer = renderer.prepare(opened, tmp_path, stack)
            (picture,) = renderer.draw(sample_view(opened, opened.samples[0]))
        texts = [text.text for text in picture.drawing.texts]
        heads = [text for text in texts[1:] if "weights" in text or text in ("a", "c")]
        return [text for text in heads if "minus" not in text], texts[0]

    torch.save(tiny_network().state_dict(), tmp_path / "epoch3.pt")
    pretrained, random = archive("p", "DEFAULT"), archive("a", None)
    own = archive("o", str(tmp_path / "epoch3.pt"))
    names, caption = said(random, pretrained, archive("b", None, seed=1), own)
    assert caption.endswith(" · tiny")
    assert names == ["random weights, seed 0", "weights DEFAULT", "random weights, seed 1",
                     "weights epoch3.pt"]  # fmt: skip
    names, caption = said(random, archive("c", None))
    assert caption.endswith(" · tiny (random weights, seed 0)")
    assert names == ["a", "c"]
    names, caption = said(random, tmp_path / "c", pretrained)
    assert names == ["random weights, seed 0 · a", "random weights, seed 0 · c",
                     "weights DEFAULT · p"]  # fmt: skip


def test_pretrained_weights_have_no_note(opened: Archive) -> None:
    assert opened.manifest.model_title == opened.manifest.model_name == "tiny"


@pytest.mark.parametrize("room", [64, 112, 160])
@pytest.mark.parametrize(
    "text", ["features.28 · ch 0 · blank", "224×224 · -0.25 … 0.0071", "layer4.2.conv3 · ch 7"]
)
def test_titles_go_on_in_further_lines_before_anything_is_left_out(text: str, room: int) -> None:
    lines = wrap(text, room, TITLE_SIZE)
    letters = str.maketrans("", "", " ·")
    assert "".join(lines).translate(letters) == text.translate(letters)
    assert all(width_of(line, TITLE_SIZE) <= room for line in lines)
    assert not any(line.endswith(("0.", "-")) for line in lines)


def test_what_all_titles_share_is_left_out_of_all_of_them() -> None:
    blank = np.full((100, 100, 3), 255, np.uint8)
    tiles = [Tile(pixels=blank, title=f"features.28 · ch {n}{end}")
             for n, end in ((0, ""), (1, " · blank"), (2, ""))]  # fmt: skip
    texts = [text.text for text in compose(tiles, 3, caption="features.28 · cat").texts]
    assert texts[1:] == ["ch 0", "ch 1 · blank", "ch 2"]
    texts = [text.text for text in compose(tiles, 3, titles="maps").texts]
    assert texts == ["features.28", "ch 0", "features.28", "ch 1 · blank", "features.28", "ch 2"]
