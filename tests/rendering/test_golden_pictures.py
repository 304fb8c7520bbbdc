"""Golden pictures: every renderer and option, pixel for pixel, against matplotlib and numpy."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import get_args

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pipeline.archive.reading.archive import Archive
from pipeline.renderers.filters import Filters
from pipeline.renderers.grid import Grid
from pipeline.renderers.mean_map import MeanMap, OverChannels
from pipeline.renderers.overview import Overview
from pipeline.renderers.pca import PCA
from pipeline.renderers.thumbnails import Thumbnails
from pipeline.renderers.top_samples import TopSamples
from pipeline.rendering.drawing.colormaps import Scale
from pipeline.rendering.drawing.picture_formats import encode, write_png
from pipeline.rendering.drawing.text_and_resize import font
from pipeline.rendering.drawing.tile_layout import MARGIN, TileLayout
from pipeline.rendering.views import as_layer_view, sample_view
from tests.helpers.golden_views import IMAGE, MAPS, RAMP, STATISTICS, layer, sample
from tests.helpers.views_and_pixels import drawn

"""Five maps of 8×8: two ramps, a signed one, a wave, a parabola."""


def painted(
    values: np.ndarray,
    low: float,
    high: float,
    name: str = "viridis",
    times: int = 1,
    levels: int = 240,
) -> np.ndarray:
    """Return matplotlib's rendering of a map in `levels` levels, each pixel repeated."""
    unit = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    rgb = mpl.colormaps[name].resampled(levels)(unit, bytes=True)[..., :3]
    return rgb.repeat(times, axis=0).repeat(times, axis=1)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Assert equal colours; one step of the colour table at a rounding edge is let pass."""
    assert found.shape == expected.shape
    off = np.abs(found.astype(int) - expected.astype(int))
    assert off.max(initial=0) <= 6
    assert (off > 0).mean() < 0.02


def tiles(picture: np.ndarray, size: tuple[int, int], columns: int, rows: int) -> list[np.ndarray]:
    """Cut a picture without texts into its tiles."""
    height, width = size
    assert picture.shape == (
        2 * MARGIN + rows * (height + 8) - 8, 2 * MARGIN + columns * (width + 8) - 8, 3
    )  # fmt: skip
    found = [
        picture[y : y + height, x : x + width]
        for y in range(MARGIN, MARGIN + rows * (height + 8), height + 8)
        for x in range(MARGIN, MARGIN + columns * (width + 8), width + 8)
    ]
    rest = picture.astype(int).sum() - sum(tile.astype(int).sum() for tile in found)
    assert rest == 255 * (picture.size - sum(tile.size for tile in found))  # only paper elsewhere
    return found


def bare(layout: TileLayout) -> np.ndarray:
    """Return a picture without its caption and note, whose height does not depend on options."""
    picture = replace(layout, texts=()).rgb
    return np.concatenate([picture[:MARGIN], picture[HEAD:]])


HEAD = (
    Grid(max_channels=1, tile_size=8, titles=False).draw_layer(layer(), sample()).paper.shape[0]
    - 8
    - MARGIN
)


@pytest.mark.parametrize(
    ("options", "channels", "ends"),
    [
        ({}, [0, 1, 2, 3, 4], None),
        ({"channels": (3, 1)}, [3, 1], None),
        ({"max_channels": 2, "select": "mean"}, [1, 0], None),
        ({"max_channels": 2, "select": "variance"}, [1, 4], None),
        ({"max_channels": 3, "select": "max"}, [1, 4, 0], None),
        ({"max_channels": 3, "select": "max", "order": "channel"}, [0, 1, 4], None),
        ({"max_channels": 2, "select": "mean", "select_over": "dataset"}, [4, 3], None),
        (
            {"max_channels": 2, "select": "variance", "select_over": "dataset"},
            [1, 3],
            None,
        ),
        ({"normalize": "layer"}, [0, 1, 2, 3, 4], (MAPS.min(), MAPS.max())),
        ({"normalize": "dataset"}, [0, 1, 2, 3, 4], (-100, 200)),
        ({"normalize": "layer", "symmetric": True}, [0, 1, 2, 3, 4], (-126, 126)),
        ({"colormap": "RdBu_r"}, [0, 1, 2, 3, 4], None),
        (
            {"normalize": "layer", "percentile": (5, 90)},
            [0, 1, 2, 3, 4],
            tuple(np.percentile(MAPS, (5, 90))),
        ),
    ],
    ids=lambda value: (
        ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_grid(
    options: dict[str, object], channels: list[int], ends: tuple[float, float] | None
) -> None:
    grid = Grid(columns=len(channels), tile_size=16, titles=False, **options)  # type: ignore[arg-type]
    picture = bare(grid.draw_layer(layer(), sample()))
    for tile, channel in zip(tiles(picture, (16, 16), len(channels), 1), channels, strict=True):
        values = MAPS[channel]
        low, high = ends or (values.min(), values.max())
        close(tile, painted(values, low, high, str(options.get("colormap", "viridis")), 2))


@pytest.mark.parametrize("scale", ["log", "symlog"])
def test_grid_scales(scale: Scale) -> None:
    grid = Grid(max_channels=1, tile_size=8, titles=False, scale=scale, symmetric=scale == "symlog")
    (tile,) = tiles(bare(grid.draw_layer(layer(MAPS[2:3]), sample())), (8, 8), 1, 1)
    values = MAPS[2].astype(np.float64)  # -40 to 23
    if scale == "log":  # three decades below the largest value
        unit = mpl.colors.LogNorm(0.023, 23, clip=True)(np.maximum(values, 0.023)).data
    else:  # linear within 1 % of the largest magnitude
        unit = 0.5 + np.sign(values) * np.log1p(np.abs(values) / 0.4) / np.log1p(100) / 2
    close(tile, painted(unit, 0, 1))


def test_auto_takes_a_diverging_colormap_for_signed_layers() -> None:
    signed, unsigned = (
        layer(),
        replace(layer(), statistics=STATISTICS | {"min": np.zeros(5, np.float32)}),
    )
    grid = Grid(max_channels=1, tile_size=8, titles=False, colormap="auto")
    (tile,) = tiles(bare(grid.draw_layer(signed, sample())), (8, 8), 1, 1)
    close(tile, painted(RAMP, -63, 63, "RdBu_r"))
    (tile,) = tiles(bare(grid.draw_layer(unsigned, sample())), (8, 8), 1, 1)
    close(tile, painted(RAMP, 0, 63))
    mean = MAPS.mean(axis=0)
    largest = np.abs(mean).max()
    means = MeanMap(tile_size=8, colormap="auto")
    close(means.tile(signed, sample()).rgb, painted(mean, -largest, largest, "RdBu_r", levels=256))
    golden = painted(mean, mean.min(), mean.max(), levels=256)
    close(means.tile(unsigned, sample()).rgb, golden)
    list(Overview(colormap="auto").draw(sample(signed, unsigned)))


def test_grid_smooth_is_bilinear() -> None:
    grid = Grid(max_channels=1, tile_size=64, titles=False, upscale="smooth")
    (tile,) = tiles(bare(grid.draw_layer(layer(), sample())), (64, 64), 1, 1)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(RAMP)[None, None], scale_factor=8, mode="bilinear", align_corners=False
    )[0, 0].numpy()
    close(tile, painted(large, 0, 63))


def test_grid_titles_bar_and_flaws() -> None:
    values = MAPS.copy()
    values[1, 0, 0], values[2] = np.nan, 7
    layout = Grid(max_channels=3, tile_size=240).draw_layer(layer(values), sample())
    texts = [text.text for text in layout.texts]
    assert texts[2:] == ["conv · ch 0", "conv · ch 1 · 1 not finite", "conv · ch 2 · blank"]
    assert texts[0] == "conv · it · tiny"
    assert (layout.rgb == (255, 0, 200)).all(axis=-1).sum() == 30 * 30  # the one NaN
    assert "3 of 5 maps (first) · 8×8 · linear viridis, range per map" in texts[1]
    grid = Grid(max_channels=1, tile_size=280, titles=False, normalize="layer", colorbar=True)
    layout = grid.draw_layer(layer(), sample())
    assert [text.text for text in layout.texts[-2:]] == ["-40", "126"]
    bar = replace(layout, texts=()).rgb[-20]
    colors = [
        tuple(color[:3])
        for color in mpl.colormaps["viridis"].resampled(240)(np.arange(240), bytes=True)
    ]
    shown = [tuple(color) for color in bar if tuple(color) != (255, 255, 255)]
    assert shown == [colors[i * 240 // len(shown)] for i in range(len(shown))]
    layout = Grid(max_channels=2, tile_size=96, colorbar=True).draw_layer(layer(), sample())
    assert "0 … 63" in [text.text for text in layout.texts]


@pytest.mark.parametrize("statistic", get_args(OverChannels))
def test_mean_map(statistic: OverChannels) -> None:
    figure = {
        "mean": MAPS.mean(axis=0), "max": MAPS.max(axis=0),
        "std": MAPS.std(axis=0), "norm": np.linalg.norm(MAPS, axis=0),
    }[statistic]  # fmt: skip
    plain = MeanMap(statistic=statistic, tile_size=16, colormap="magma").tile(layer(), sample())
    golden = painted(figure, figure.min(), figure.max(), "magma", levels=256)
    close(plain.rgb, golden.repeat(2, 0).repeat(2, 1))
    over = MeanMap(statistic=statistic, tile_size=8, colormap="magma", overlay=0.25)
    blended = np.rint(0.25 * golden.astype(float) + 0.75 * IMAGE).astype(np.uint8)
    close(over.tile(layer(), sample()).rgb, blended)
    (with_input,) = MeanMap(tile_size=8, columns=2).draw(sample())
    (without,) = MeanMap(tile_size=8, columns=2, input=False).draw(sample())
    assert with_input.rgb.shape[1] == without.rgb.shape[1] + 16


@pytest.mark.parametrize("components", [1, 3])
def test_pca(components: int) -> None:
    tile = PCA(components=components, tile_size=8).tile(layer())
    vectors = MAPS.reshape(5, -1).T.astype(np.float64)
    _, singular, axes = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    scores = (vectors - vectors.mean(axis=0)) @ axes[:components].T
    unit = (scores - scores.min(axis=0)) / np.ptp(scores, axis=0)
    golden = np.broadcast_to(np.rint(unit * 255), (64, 3)).reshape(8, 8, 3)
    assert np.abs(tile.rgb.astype(float) - golden).max() <= 1
    shares = (singular**2 / (singular**2).sum())[:components]
    assert tile.note == "8×8 · " + " + ".join(f"{share:.0%}" for share in shares)


def test_overview() -> None:
    (picture,) = Overview(tile_size=66, side=2, columns=3).draw(sample(layer(), layer(MAPS * 2)))
    layout = picture.drawing
    assert [text.text for text in layout.texts if text.text in ("input", "conv")] == [  # type: ignore[attr-defined]
        "input", "conv", "conv",
    ]  # fmt: skip
    excerpt = np.full((66, 66, 3), 255, np.uint8)
    for place, channel in enumerate((1, 3, 4, 2)):  # by their deviation over the dataset
        top, left = place // 2 * 34, place % 2 * 34
        values = MAPS[channel]  # of a layer with negative values: zero is in the middle
        largest = np.abs(values).max()
        large = painted(values, -largest, largest, "RdBu_r", times=4)
        excerpt[top : top + 32, left : left + 32] = large
    left = MARGIN + 66 + 8
    column = layout.paper[:, left : left + 66]  # type: ignore[attr-defined]
    windows = np.lib.stride_tricks.sliding_window_view(column, (66, 66, 3))[:, 0, 0]
    off = (np.abs(windows.astype(int) - excerpt).max(axis=-1) > 0).mean(axis=(1, 2))
    assert off.min() < 0.02
    (without,) = Overview(tile_size=66, side=0, columns=3).draw(sample())
    assert without.rgb.shape[0] < picture.rgb.shape[0]


def test_thumbnails() -> None:
    positive = as_layer_view("relu", "relu", ("channel", "height", "width"), np.abs(MAPS))
    (picture,) = Thumbnails(tile_size=16, gap=4).draw(sample(layer(), positive))
    mean, mean_of_positive = MAPS.mean(axis=0), np.abs(MAPS).mean(axis=0)
    low, high = mean_of_positive.min(), mean_of_positive.max()
    most = np.abs(mean).max()
    assert picture.rgb.shape == (16, 56, 3)
    close(picture.rgb[:, :16], IMAGE.repeat(2, 0).repeat(2, 1))
    signed = painted(mean, -most, most, "RdBu_r", times=2, levels=256)  # as in an overview
    close(picture.rgb[:, 20:36], signed)
    close(picture.rgb[:, 40:], painted(mean_of_positive, low, high, times=2, levels=256))
    assert (picture.rgb[:, 16:20] == 255).all()


def test_filters(opened: Archive) -> None:
    weights = next(iter(opened.filters.values()))
    (picture,) = Filters(tile_size=3 * weights.shape[-1], max_channels=2, columns=2).draw_archive(
        opened
    )
    for weight in weights[:2]:
        golden = np.rint((0.5 + weight / (2 * np.abs(weight).max())) * 255).astype(np.uint8)
        tile = golden.transpose(1, 2, 0).repeat(3, 0).repeat(3, 1)
        assert len(drawn(picture.rgb, tile)) == 1


def test_top_samples(opened: Archive) -> None:
    stored = opened.layers["conv1"]
    (first, *_) = TopSamples(channels=(1,), samples=1, tile_size=16, opacity=0.5).draw_archive(
        opened
    )
    assert first.layer == "conv1"
    row = int(stored[:].max(axis=(2, 3))[:, 1].argmax())
    values, image = stored[row][1], opened.image(row)
    size = (image.shape[1], image.shape[0])
    unit = ((values - values.min()) / np.ptp(values)).astype(np.float32)
    large = np.asarray(Image.fromarray(unit).resize(size, Image.Resampling.BILINEAR))
    colors = mpl.colormaps["inferno"](large.astype(np.float64), bytes=True)[..., :3]
    part = 0.5 * large[..., None]
    golden = np.rint(part * colors + (1 - part) * image)
    assert image.shape[:2] == (16, 16)
    tile = first.rgb[-MARGIN - 16 : -MARGIN, MARGIN : MARGIN + 16]
    off = np.abs(tile.astype(float) - golden)
    peak = np.argwhere(values == values.max())[0] * 16 / values.shape[-1]
    rows, columns = np.ogrid[:16, :16]
    off[np.hypot(rows - peak[0], columns - peak[1]) < 5] = 0  # in and around the ring
    assert (off > 4).mean() < 0.02


def test_png_holds_every_colour(opened: Archive) -> None:
    seen = sample_view(opened, opened.samples[0])
    for renderer in (
        Grid(tile_size=32),
        MeanMap(tile_size=32),
        PCA(tile_size=32),
        Overview(tile_size=48),
    ):
        for picture in renderer.draw(seen):
            with Image.open(io.BytesIO(encode(picture.drawing, "png"))) as read:
                assert read.mode == ("P" if isinstance(renderer, Grid) else "RGB")
                np.testing.assert_array_equal(np.asarray(read.convert("RGB")), picture.rgb)
    pixel = np.array([[[1, 2, 3]]], np.uint8)
    with Image.open(io.BytesIO(write_png(pixel))) as read:
        assert read.getpixel((0, 0)) == (1, 2, 3)


def test_texts_are_shades_of_ink_on_paper() -> None:
    layout = Grid(max_channels=1, tile_size=96).draw_layer(layer(), sample())
    image = Image.fromarray(replace(layout, texts=()).rgb)
    draw = ImageDraw.Draw(image)
    for text in layout.texts:
        face = font(text.size, bold=text.bold)
        draw.text((text.x, text.y), text.text, fill=text.color, font=face)
    off = np.abs(np.asarray(image).astype(int) - layout.rgb)
    assert off.max() <= 255 / 14 + 1  # half a shade
