"""Pictures: colours against matplotlib, PCA against numpy's SVD.

Golden RGB arrays for every renderer's rules.
"""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import matplotlib as mpl
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib.colors import LogNorm, Normalize
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import ConfigError
from pipeline.extraction.add_layer import add_layer
from pipeline.renderers.compare import Compare, Ranges
from pipeline.renderers.grid import Grid
from pipeline.renderers.mean_map import MeanMap, over_channels, overlaid
from pipeline.renderers.overview import Overview
from pipeline.renderers.pca import PCA, project
from pipeline.renderers.thumbnails import Thumbnails
from pipeline.rendering.drawing import text_and_resize
from pipeline.rendering.drawing.colormaps import NONFINITE, Scale, colorize, limits, normalize
from pipeline.rendering.drawing.picture_formats import encode
from pipeline.rendering.drawing.tile_layout import MARGIN, Tile, compose
from pipeline.rendering.projection import fit_project, project_colors
from pipeline.rendering.views import as_layer_view, sample_view
from tests.helpers.views_and_pixels import drawn, in_steps, layer, maps, sample


@pytest.mark.parametrize("name", ["viridis", "plasma", "gray", "RdBu_r", "tab10"])
def test_colours_are_matplotlibs_own(name: str) -> None:
    values = maps()[0]
    norm = Normalize(values.min(), values.max())
    expected = mpl.colormaps[name](norm(values), bytes=True)[..., :3]
    found = colorize(normalize(values, *limits(values)), name)
    # float32 against float64 may fall on the other side of a table row's edge
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= (255 if name == "tab10" else 3)
    assert (found == expected).mean() > 0.97


def test_log_scale_is_matplotlibs_over_three_decades() -> None:
    values = np.array([[-1.0, 0.0, 0.001, 0.01, 0.1, 1.0]], np.float32)
    low, high = limits(values)
    expected = LogNorm(1e-3, 1.0, clip=True)(np.maximum(values, 1e-3))
    np.testing.assert_allclose(normalize(values, low, high, "log"), expected, atol=1e-6)


def test_symlog_scale_is_odd_and_monotonic() -> None:
    values = np.array([-10, -1, -0.1, 0, 0.1, 1, 10], np.float32)
    unit = normalize(values, -10, 10, "symlog")
    np.testing.assert_allclose(unit + unit[::-1], 1, atol=1e-6)
    assert (np.diff(unit) > 0).all()
    assert unit[5] > normalize(values, -10, 10)[5]  # small magnitudes are drawn apart


@pytest.mark.parametrize("scale", get_args(Scale))
def test_nan_infinity_and_zero_range_never_blacken_a_picture(scale: Scale) -> None:
    values = maps()[0]
    values[0, 0], values[1, 1], values[2, 2] = np.nan, np.inf, -np.inf
    finite = values[np.isfinite(values)]
    assert limits(values) == (finite.min(), finite.max())
    picture = colorize(normalize(values, *limits(values), scale), "viridis")
    for i in range(3):
        assert tuple(picture[i, i]) == NONFINITE
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 5
    flat = colorize(normalize(np.full((3, 3), 7.0), 7, 7, scale), "viridis")
    assert (flat == mpl.colormaps["viridis"](0, bytes=True)[:3]).all()
    nothing = np.full((2, 2), np.nan)
    assert limits(nothing) == (0, 0)
    assert (colorize(normalize(nothing, 0, 0, scale), "viridis") == NONFINITE).all()


def test_huge_and_tiny_values_keep_their_range() -> None:
    for factor in (1e-38, 1e38):
        values = np.array([-1, 0, 1], np.float32) * np.float32(factor)
        np.testing.assert_allclose(normalize(values, *limits(values)), [0, 0.5, 1], atol=1e-4)


def test_percentiles_clip() -> None:
    values = np.arange(101, dtype=np.float32)
    assert limits(values, (5, 90)) == (5, 90)
    unit = normalize(values, 5, 90)
    assert unit[0] == 0
    assert unit[100] == 1


def svd_colours(values: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """The projection by numpy's SVD, with the stated sign: the largest loading is positive."""
    channels, height, width = values.shape
    x = values.reshape(channels, -1).T.astype(np.float64)
    x = x - x.mean(axis=0)
    _, singular, rows = np.linalg.svd(x, full_matrices=False)
    rows = rows[:components]
    rows *= np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])[:, None]
    scores = x @ rows.T
    scores = (scores - scores.min(axis=0)) / (scores.max(axis=0) - scores.min(axis=0))
    explained = singular[:components] ** 2 / (singular**2).sum()
    return scores.reshape(height, width, -1) * 255, explained


@pytest.mark.parametrize("shape", [(6, 9, 7), (64, 5, 4), (3, 8, 8), (40, 14, 14)])
@pytest.mark.parametrize("components", [1, 3])
def test_pca_colours_equal_numpys_svd(shape: tuple[int, int, int], components: int) -> None:
    values = maps(2, shape) * np.linspace(3, 0.2, shape[0], dtype=np.float32)[:, None, None]
    expected, explained = svd_colours(values, components)
    picture, shares = project(values, components)
    np.testing.assert_allclose(picture[..., :components], expected, atol=0.501)
    np.testing.assert_allclose(shares, explained, rtol=1e-8)
    if components == 1:
        assert (picture[..., :1] == picture).all()


def test_pca_of_positions_with_nan_leaves_them_out() -> None:
    values = maps(3, (5, 6, 6))
    values[2, 1, 4] = np.nan
    picture, _ = project(values)
    assert tuple(picture[1, 4]) == NONFINITE
    rest = np.delete(values.reshape(5, -1), 10, axis=1)[:, None, :]
    np.testing.assert_array_equal(
        np.delete(picture.reshape(-1, 3), 10, axis=0), project(rest)[0][0]
    )


def test_pca_of_constant_or_thin_activations_is_black_not_an_error() -> None:
    picture, explained = project(np.full((4, 3, 3), 2.5, np.float32))
    assert not picture.any()
    assert not explained.any()
    two, explained = project(maps(4, (2, 5, 5)))
    assert not two[..., 2].any()
    np.testing.assert_allclose(explained.sum(), 1)
    assert (project(np.full((4, 3, 3), np.nan, np.float32))[0] == NONFINITE).all()


def test_pca_of_huge_and_tiny_activations() -> None:
    values = maps(5, (8, 6, 6))
    expected, _ = project(values)
    for factor in (1e-30, 1e15):
        found, _ = project((values * np.float64(factor)).astype(np.float32))
        np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1)


def test_equal_vectors_get_equal_colours() -> None:
    projection, _ = fit_project(np.random.default_rng(0).normal(size=(50, 6)))
    twice = np.repeat(np.random.default_rng(1).normal(size=(4, 6)), 2, axis=0)
    colours = project_colors(projection(twice))
    np.testing.assert_array_equal(colours[::2], colours[1::2])


def test_a_grid_holds_each_map_enlarged_in_order() -> None:
    values = maps()
    grid = Grid(max_channels=5, columns=3, tile_size=14)
    picture = grid.draw_layer(layer(values), sample()).rgb
    places = []
    for channel in range(5):
        rgb = in_steps(normalize(values[channel], *limits(values[channel])))
        found = drawn(picture, rgb.repeat(2, axis=0).repeat(2, axis=1))
        assert len(found) == 1, channel
        places += found
    assert places == sorted(places)
    assert len({y for y, _ in places}) == 2


def test_grid_ranges_are_shared_where_asked() -> None:
    values = maps()
    picture = (
        Grid(max_channels=2, tile_size=7, normalize="layer").draw_layer(layer(values), sample()).rgb
    )
    rgb = in_steps(normalize(values[1], values.min(), values.max()))
    assert drawn(picture, rgb)


def test_grids_choose_channels() -> None:
    values = maps() * np.array([1, 5, 2, 1, 9, 3], np.float32)[:, None, None]
    values += np.array([0, 1, 7, 3, 0, 2], np.float32)[:, None, None]
    assert Grid(max_channels=4).choose(layer(values)).tolist() == [0, 1, 2, 3]
    assert Grid(max_channels=3, select="variance").choose(layer(values)).tolist() == [4, 1, 5]
    by_mean = np.argsort(-values.mean(axis=(1, 2)))[:3]
    assert Grid(max_channels=3, select="mean").choose(layer(values)).tolist() == by_mean.tolist()
    assert Grid(channels=(5, 0)).choose(layer(values)).tolist() == [5, 0]
    with pytest.raises(ConfigError, match=r"channels: no channel 6 in layer conv; use 0 to 5"):
        Grid(channels=(6,)).check({"conv": 6})
    values[4] = np.nan
    assert 4 not in Grid(max_channels=5, select="variance").choose(layer(values))


def test_mean_maps_ignore_what_is_not_finite() -> None:
    values = maps()
    np.testing.assert_allclose(over_channels(layer(values)), values.mean(axis=0), rtol=1e-5)
    values[0, 0, 0], values[:, 1, 1] = np.nan, np.inf
    found = over_channels(layer(values))
    np.testing.assert_allclose(found[0, 0], values[1:, 0, 0].mean(), rtol=1e-5)
    assert np.isnan(found[1, 1])
    left_out = 1 + len(values)
    assert MeanMap().tile(layer(values), sample()).note.endswith(f" · {left_out} not finite")
    assert MeanMap().tile(layer(values * np.nan), sample()).note.endswith("nothing finite")


def test_the_mean_after_a_layer_norm_is_flat() -> None:
    """It is zero but for rounding errors, which a map of their own range showed as a pattern."""
    values = maps(0, (192, 8, 8)).astype(np.float64)
    normalized = ((values - values.mean(axis=0)) / values.std(axis=0)).astype(np.float32)
    tile = MeanMap(tile_size=8).tile(layer(normalized), sample())
    assert len(np.unique(tile.rgb.reshape(-1, 3), axis=0)) == 1
    normalized[:, 3, 4] += 1e-3
    tile = MeanMap(tile_size=8).tile(layer(normalized), sample())
    assert len(np.unique(tile.rgb.reshape(-1, 3), axis=0)) == 2


def test_zero_is_in_the_middle_of_a_symmetric_range_also_if_all_is_zero() -> None:
    """Not in the colour of the most negative values: dead maps, and archives that do not differ."""
    white = colorize(np.float32(0.5), "RdBu_r")
    signed = maps(0, (3, 4, 4))
    signed[1] = 0
    picture = Grid(colormap="auto", tile_size=4).draw_layer(layer(signed), sample()).rgb
    steps = np.broadcast_to(in_steps(np.float32([[0.5]]), "RdBu_r"), (4, 4, 3))
    assert drawn(picture, steps)
    level = signed - signed.mean(axis=0)  # the mean map is 0, as after a LayerNorm
    tile = MeanMap(colormap="auto", tile_size=4).tile(layer(level), sample())
    assert (tile.rgb == white).all()
    assert tile.note == "4×4 · all 0"
    vector = as_layer_view("v", "v", ("channel",), np.zeros(5, np.float32))
    (low, high) = Ranges([sample(vector), sample(vector)]).of_difference["v"]
    assert low < 0 < high


def test_compared_archives_centre_zero_if_the_dataset_of_any_has_negative_values(
    tiny_archive: Path, tmp_path: Path
) -> None:
    """Whichever archive comes first, and also for samples without negative values."""
    plain = np.zeros((7, 1, 4, 4), np.float32)
    signed = plain - np.eye(7, dtype=np.float32)[6][:, None, None, None]  # in the last sample
    paths = [
        str(add_layer(tiny_archive, "m", rows, to=tmp_path / name))
        for name, rows in (("plain", plain), ("signed", signed))
    ]
    zero = colorize(np.float32(0.5), "RdBu_r")
    for first, other in (paths, paths[::-1]):
        with Archive.open(first) as archive, ExitStack() as stack:
            compare = Compare(archives=(other,), colormap="auto", difference=False, tile_size=4)
            renderer = compare.prepare(archive, Path(), stack)
            (picture,) = renderer.draw(sample_view(archive, archive.samples[0]))
        assert drawn(picture.drawing.rgb, np.broadcast_to(zero, (4, 4, 3)))


def test_mean_maps_are_drawn_in_the_asked_colours_over_the_input() -> None:
    values = maps(0, (6, 8, 8))
    tile = MeanMap(colormap="plasma", tile_size=16).tile(layer(values), sample())
    mean = over_channels(layer(values))
    rgb = colorize(normalize(mean, *limits(mean)), "plasma")
    np.testing.assert_array_equal(tile.rgb, rgb.repeat(2, axis=0).repeat(2, axis=1))
    assert tile.note == f"8×8 · {mean.min():.2g} … {mean.max():.2g}"
    image = sample().image
    np.testing.assert_array_equal(overlaid(rgb, image, 0.0), image)
    assert overlaid(rgb, image, 0.5).shape == image.shape


def test_every_renderer_draws_maps_tokens_vectors_and_nan() -> None:
    sick = maps()
    sick[:] = np.nan
    layers = (
        layer(maps(), "maps"),
        layer(sick, "sick"),
        as_layer_view("tokens", "tokens", ("token", "channel"), np.ones((9, 4), np.float32)),
        as_layer_view("vector", "vector", ("channel",), np.arange(10, dtype=np.float32)),
    )
    for renderer in (Grid(), MeanMap(), PCA(), PCA(components=1), Overview(), Thumbnails()):
        pictures = list(renderer.draw(sample(*layers)))
        assert [p.layer for p in pictures] in ([None], [v.name for v in layers])
        for picture in pictures:
            assert picture.rgb.dtype == np.uint8
            assert picture.rgb.ndim == 3
            assert (picture.rgb != picture.rgb[0, 0]).any()  # not of one colour


def test_vectors_are_drawn_as_a_bar_per_channel_never_as_a_map() -> None:
    values = np.array([0, 1, -1, 2, np.nan], np.float32)
    view = as_layer_view("v", "v", ("channel",), values)
    assert view.maps.shape == (5, 1, 1)
    tile = MeanMap(tile_size=30).tile(view, sample())
    ink = (tile.rgb != text_and_resize.PAPER).any(axis=2)
    assert ink.shape == (30, 30)
    filled = ink[:, 3::6].sum(axis=0)  # a column in the middle of each bar
    assert filled[4] == 30  # painted all over: not finite
    assert filled[0] == 1  # zero: the axis alone
    assert abs(int(filled[3]) - 20) <= 1
    assert abs(int(filled[1]) - 10) <= 1
    assert abs(int(filled[2]) - 10) <= 1
    assert (tile.rgb[:, 4 * 6 :] == np.array(NONFINITE)).all()
    many = as_layer_view("v", "v", ("channel",), np.linspace(0, 1, 1000, dtype=np.float32))
    [picture] = Grid(tile_size=50, columns=4).draw(sample(many))
    assert picture.rgb.shape[1] >= 200


def test_maps_of_one_position_are_bars_too() -> None:
    values = np.array([3, 1, 21, 0.5, 7, 2, 9, 4, 6, 5], np.float32)
    axes = ("channel", "height", "width")
    single = as_layer_view("pool", "pool", axes, values.reshape(10, 1, 1))
    vector = as_layer_view("pool", "pool", ("channel",), values)
    for renderer in (Grid(), MeanMap(), PCA(), Overview(), Thumbnails()):
        (one,), (other,) = renderer.draw(sample(single)), renderer.draw(sample(vector))
        np.testing.assert_array_equal(one.rgb, other.rgb)
    (picture,) = Grid().draw(sample(single))
    texts = [text.text for text in picture.drawing.texts]  # type: ignore[attr-defined]
    assert (
        "0.5 … 21 · mean 5.85 · largest: ch 2 (21), ch 6 (9), ch 4 (7), ch 8 (6), ch 9 (5)" in texts
    )
    (picture,) = Grid(channels=(3, 0)).draw(sample(single))
    texts = [text.text for text in picture.drawing.texts]  # type: ignore[attr-defined]
    assert "0.5 … 21 · mean 5.85 · chosen: ch 3 (0.5), ch 0 (3)" in texts
    nothing = as_layer_view("pool", "pool", ("channel",), np.full(10, np.nan, np.float32))
    (picture,) = Grid().draw(sample(nothing))
    texts = [text.text for text in picture.drawing.texts]  # type: ignore[attr-defined]
    assert "nothing finite" in texts


def test_a_map_is_drawn_exactly_as_large_as_asked() -> None:
    small, large = maps(0, (6, 7, 5)), maps(0, (6, 40, 64))
    for values in (small, large):
        for upscale in ("nearest", "smooth"):
            drawn_map = Grid(
                tile_size=33, max_channels=1, columns=1, titles="none", upscale=upscale
            )
            picture = drawn_map.draw_layer(layer(values), sample()).rgb
            assert max(picture.shape[:2]) == 33 + 2 * MARGIN
    shrunk = text_and_resize.resample(large[0], 32, Image.Resampling.BOX)
    np.testing.assert_allclose(shrunk, large[0].reshape(20, 2, 32, 2).mean(axis=(1, 3)), rtol=1e-5)


def test_texts_never_overflow_their_tile() -> None:
    name = "a.very.long.layer.name.that.nobody.could.ever.read.in.a.small.tile"
    size = text_and_resize.TITLE_SIZE
    (short,) = text_and_resize.wrap(name, 100, size, max_lines=1)
    assert text_and_resize.font(size).getlength(short) <= 100
    assert short.startswith("a.very")
    assert short.endswith("tile")
    assert text_and_resize.wrap("fits", 100, size, max_lines=1) == ("fits",)
    blank = np.full((30, 60, 3), 255, np.uint8)
    tiles = [Tile(pixels=blank, title=name, note=name)] * 3
    picture = compose(tiles, 2, caption=name, note=name).rgb
    inside = picture[MARGIN:-MARGIN, MARGIN:-MARGIN]
    assert (picture != 255).sum() == (inside != 255).sum()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Grid(columns=0), "^Grid: columns: must be at least 1, got 0$"),
        (lambda: Grid(percentile=(90.0, 10.0)), "rising"),
        (
            lambda: Grid(columns=100_000),
            "^Grid: columns: must be less than or equal to 1000",
        ),
        (lambda: Grid(tile_size=100_000), "^Grid: tile_size: must be less than or equal to 4096"),
        (lambda: Grid(channels=(-1,)), r"^Grid: channels\[0\]: must be at least 0, got -1$"),
        (lambda: MeanMap(overlay=2.0), "^MeanMap: overlay: must be less than or equal to 1"),
        (lambda: PCA(components=2), "^PCA: components: must be 1 or 3"),
        (lambda: Grid(colormap="virids"), "did you mean viridis"),
    ],
)
def test_options_are_checked(make: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(("kind", "longest"), [("webp", 16383), ("jpeg", 65500)])
def test_pictures_beyond_the_limit_of_their_format(kind: str, longest: int) -> None:
    def encoded(height: int) -> bytes:
        return encode(
            SimpleNamespace(rgb=np.zeros((height, 1, 3), np.uint8)),  # type: ignore[arg-type]
            kind,
        )

    assert Image.open(io.BytesIO(encoded(longest))).size == (1, longest)
    with pytest.raises(ConfigError, match=f"1×{longest + 1} pixels exceeds the {longest} of"):
        encoded(longest + 1)


def test_values_near_the_largest_float32_have_their_colours() -> None:
    maps = np.full((4, 2, 2), 3e38, np.float32)
    maps[:, 0] = [1e38, -3e38]
    layer = as_layer_view("conv", "conv", ("channel", "height", "width"), maps)
    norm = over_channels(layer, "norm")  # 6e38: no float32
    low, high = limits(norm)
    assert (low, high) == pytest.approx((2e38, 6e38))
    np.testing.assert_allclose(normalize(norm, low, high), [[0, 1], [1, 1]], atol=1e-6)
    for scale in get_args(Scale):
        assert np.isfinite(normalize(norm, 0, high, scale)).all()
        assert np.isfinite(normalize(norm, 0, 3e38, scale)).all()  # clipped
    assert limits(maps[0, 0], (25, 75)) == pytest.approx((-2e38, 0), abs=1e31)


def test_text_that_dejavu_lacks_has_a_font_that_covers_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text_and_resize._warn_of_boxes.cache_clear()
    lacking = "conv \u1d84"  # STIX, which ships with matplotlib, has it
    for text in ("conv é 3×3", lacking):
        assert set(map(ord, text)) <= TTFont(text_and_resize.font_file(text)).getBestCmap().keys()
    assert text_and_resize.font_file("conv").endswith("DejaVuSans.ttf")
    assert not caplog.messages
    for text in ("\U0010fffd", "a \U0010fffd"):
        assert text_and_resize.font_file(text).endswith("DejaVuSans.ttf")
    assert caplog.messages == ["text: characters that no installed font has are drawn as boxes"]
