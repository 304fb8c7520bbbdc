"""Pictures over several archives, and figures for papers."""

from __future__ import annotations

import base64
import io
import json
import re
import zlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ConfigError
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.gallery.pages import write_gallery
from pipeline.models.tiny import TinyModel
from pipeline.renderers.compare import Compare
from pipeline.renderers.filters import Filters
from pipeline.renderers.grid import Grid
from pipeline.renderers.histogram import Histogram
from pipeline.renderers.mean_map import MeanMap
from pipeline.renderers.pca import PCA
from pipeline.rendering.drawing.colormaps import palette
from pipeline.rendering.drawing.picture_formats import encode
from pipeline.rendering.drawing.tile_layout import Tile, compose
from pipeline.rendering.render import RenderOptions, render
from pipeline.rendering.views import sample_view
from tests.conftest import tiny_extraction
from tests.helpers.golden_views import layer, sample
from tests.helpers.views_and_pixels import drawn


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another seed, fewer samples, another layer."""
    path = tmp_path_factory.mktemp("other") / "second" / "archive"
    extract(
        tiny_extraction(
            path,
            seed=7,
            model=TinyModel(weights=None),
            dataset=Synthetic(samples=3, height=16, width=16),
            layers=LayerSelector(include=("relu",)),
        )
    )
    return path


@pytest.mark.parametrize("show", ["mean", "pca"])
def test_compare(opened: Archive, other: Path, tmp_path: Path, show: str) -> None:
    wanted = Compare(archives=(str(other),), tile_size=32, show=show, columns=3)
    renderer = wanted.prepare(opened, tmp_path, ExitStack())
    (seen,) = renderer.draw(sample_view(opened, opened.samples[1]))
    first = sample_view(opened, opened.samples[1])
    with Archive.open(other) as second:
        view = sample_view(second, second.samples[1])
    theirs = view.layers[0]
    (ours,) = (layer for layer in first.layers if layer.name == theirs.name)
    means = [layer.maps.astype(np.float64).mean(axis=0) for layer in (ours, theirs)]
    low, high = min(map(np.min, means)), max(map(np.max, means))  # one range for both
    if show == "mean":
        change = means[1] - means[0]
        most = np.abs(change).max()
        expected = [
            mpl.colormaps[colormap]((mean - start) / (stop - start), bytes=True)[..., :3]
            for mean, colormap, start, stop in (
                (means[0], "viridis", low, high), (means[1], "viridis", low, high),
                (change, "RdBu_r", -most, most),
            )
        ]  # fmt: skip
        expected = [pixels.repeat(2, axis=0).repeat(2, axis=1) for pixels in expected]
    else:
        expected = [PCA(tile_size=32).tile(theirs).rgb]
    for pixels in expected:
        assert drawn(seen.rgb, pixels, off=4)  # float32 may take the next colour
    wide = Compare(archives=(str(other),), tile_size=400, show=show)
    wide = wide.prepare(opened, tmp_path, ExitStack())
    logits = opened.layers["fc"][1]
    texts = {
        1: {"weights DEFAULT", "random weights, seed 7", f"predicted class: {logits.argmax()}"},
        5: {"weights DEFAULT", "not in this archive"},
    }
    if show == "mean":
        texts[1] |= {"difference", "minus weights DEFAULT"}
    for row, wanted_texts in texts.items():
        (picture,) = wide.draw(sample_view(opened, opened.samples[row]))
        assert wanted_texts <= {text.text for text in picture.drawing.texts}  # type: ignore[attr-defined]
        headline = picture.drawing.texts[0].text  # type: ignore[attr-defined]
        assert headline.startswith("compare · ")
        assert headline.endswith(" · tiny")  # the model of both
    with pytest.raises(ConfigError, match="name the other archives"):
        Compare().dependencies()
    with pytest.raises(ConfigError, match=r"archives: .*not an archive"):
        Compare(archives=(str(tmp_path),)).dependencies()


def test_pictures_depend_on_the_other_archives(
    opened: Archive, other: Path, tmp_path: Path
) -> None:
    done = render(opened, tmp_path, {"compare": Compare(archives=(str(other),), tile_size=24)})
    note = json.loads((tmp_path / ".drawn" / "compare.json").read_text(encoding="utf-8"))
    with Archive.open(other) as second:
        assert note["drawn_with"]["others"] == {str(other): second.manifest.fingerprint}
    path = tmp_path / done.pictures(opened.samples[0])[0].path
    before = path.stat().st_mtime_ns
    note["drawn_with"]["others"] = {str(other): "something else"}
    (tmp_path / ".drawn" / "compare.json").write_text(json.dumps(note), encoding="utf-8")
    render(opened, tmp_path, {"compare": Compare(archives=(str(other),), tile_size=24)})
    assert path.stat().st_mtime_ns != before


def test_svg_holds_the_pixels_and_pdf_too() -> None:
    layout = Grid(max_channels=2, tile_size=16).draw_layer(layer(), sample())
    svg = encode(layout, "svg")
    assert svg == encode(layout, "svg")
    for text in layout.texts:
        assert f">{text.text}</text>".encode() in svg
    (content,) = re.findall(rb'xlink:href="data:image/png;base64,\s*([^"]+)"', svg)
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        np.testing.assert_array_equal(
            np.asarray(picture.convert("RGB")), replace(layout, texts=()).rgb
        )
    pdf = encode(layout, "pdf")
    assert pdf == encode(layout, "pdf")
    assert b"CreationDate" not in pdf
    height, width = layout.paper.shape[:2]
    assert f"/MediaBox [ 0 0 {width * 0.72:g} {height * 0.72:g} ]".encode() in pdf
    assert f"/Width {width} /Height {height}".encode() in pdf or (
        f"/Width {width}".encode() in pdf and f"/Height {height}".encode() in pdf
    )
    assert b"DejaVuSans" in pdf
    assert any(_inflated(part) for part in re.findall(rb"stream\n(.*?)endstream", pdf, re.S))


def _inflated(part: bytes) -> bytes:
    try:
        return zlib.decompress(part)
    except zlib.error:
        return b""


def test_figures_stand_beside_their_pictures(opened: Archive, tmp_path: Path) -> None:
    options = RenderOptions(samples=("0:1",), figures=("pdf", "svg"))  # type: ignore[arg-type]
    renderers = {"mean_map": MeanMap(tile_size=16), "filters": Filters(max_channels=1)}
    done = render(opened, tmp_path, renderers, options)
    pictures = [*done.pictures(opened.samples[0]), *done.of_archive]
    assert len(pictures) == 2
    for picture in pictures:
        pdf, svg = ((tmp_path / path).read_bytes() for path in picture.figures)
        assert pdf.startswith(b"%PDF")
        assert b"<svg" in svg
    times = [(tmp_path / picture.path).stat().st_mtime_ns for picture in pictures]
    (tmp_path / pictures[0].figures[0]).unlink()
    render(opened, tmp_path, renderers, options)
    after = [(tmp_path / picture.path).stat().st_mtime_ns for picture in pictures]
    assert (tmp_path / pictures[0].figures[0]).is_file()
    assert after[-1] == times[-1]  # the filters are not drawn again
    index = write_gallery(opened, done)
    (page,) = (index.parent / "samples").glob("000000-*.html")
    assert f'href="../../{pictures[0].figures[0].as_posix()}">PDF</a>' in page.read_text("utf-8")


def test_a_histogram_shows_every_bin(opened: Archive) -> None:
    layer = opened.layers["conv1"]
    picture = next(Histogram(bins=8, dpi=110).draw_archive(opened))
    pixels = picture.rgb[78 : 396 - 44, 56:500]
    dark = (pixels == (59, 82, 139)).all(axis=2)
    counts, _ = np.histogram(layer[:], np.linspace(layer[:].min(), layer[:].max(), 9))
    columns = np.flatnonzero(dark.any(axis=0))
    heights = dark[:, np.linspace(columns[0] + 3, columns[-1] - 3, 8).astype(int)].sum(axis=0)
    assert np.array_equal(np.argsort(heights, kind="stable"), np.argsort(counts, kind="stable"))


def test_equal_palettes_are_one_however_often_they_were_made() -> None:
    """Threads that ask for a palette at once may each make it; the bytes stay the same."""
    numbers = np.zeros((4, 4), np.uint8)
    tiles = [Tile(pixels=numbers, palette=palette("viridis").copy()) for _ in range(2)]
    assert compose(tiles, 2).palette is not None
    mixed = [tiles[0], Tile(pixels=numbers, palette=palette("magma"))]
    assert compose(mixed, 2).palette is None
