"""Pictures that need the whole dataset: shared ranges, PCA, top samples, distributions; and what is
drawn again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import ConfigError
from pipeline.common.progress import Progress
from pipeline.datasets.samples import Sample
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Storage
from pipeline.renderers.grid import Grid
from pipeline.renderers.histogram import Histogram, distribution
from pipeline.renderers.mean_map import MeanMap, OverChannels, over_channels
from pipeline.renderers.pca import PCA, painted
from pipeline.renderers.top_samples import TopSamples, top_rows
from pipeline.rendering.drawing.colormaps import normalize, palette
from pipeline.rendering.drawing.picture_formats import encode
from pipeline.rendering.options import RenderOptions
from pipeline.rendering.projection import StreamingFit, fit_dataset, fit_project, project_colors
from pipeline.rendering.render import render
from pipeline.rendering.sample_selection import choose_rows, chosen_samples, with_labels
from pipeline.rendering.views import layer_view, sample_view
from scripts.synthetic_archive import layer_of, write_archive
from tests.conftest import tiny_extraction
from tests.helpers.random_archives import archive_of, random
from tests.helpers.views_and_pixels import drawn, in_steps, layer, maps, sample

# ------------------------------------------------------------------ PCA over the dataset


def every_vector(archive: Archive, name: str) -> np.ndarray:
    """Return all positions of all samples, `(position, channel)` float64."""
    values = np.moveaxis(archive.layers[name][:].astype(np.float64), 1, -1)
    return values.reshape(-1, values.shape[-1])


def test_pca_over_the_dataset_is_the_svd_of_everything(opened: Archive, tmp_path: Path) -> None:
    found = fit_dataset(opened, tmp_path, 3, positions=0, seed=0)
    for name in ("conv1", "conv2"):
        everything = every_vector(opened, name)
        centred = everything - everything.mean(axis=0)
        _, singular, rows = np.linalg.svd(centred, full_matrices=False)
        projection = found[name]
        shares = singular**2 / (singular**2).sum()
        np.testing.assert_allclose(projection.explained, shares[:3], atol=1e-4)
        for mine, theirs, share in zip(projection.components, rows, shares, strict=False):
            if share < 1e-9:  # conv1 has two directions only; a third is noise
                assert not mine.any()
                continue
            sign = np.sign(theirs[np.argmax(np.abs(theirs))])
            np.testing.assert_allclose(mine, theirs * sign, atol=1e-4)
        scores = centred @ projection.components.T
        np.testing.assert_allclose(found[name].low, scores.min(axis=0), atol=1e-4)
        np.testing.assert_allclose(found[name].high, scores.max(axis=0), atol=1e-4)


def test_the_order_of_blocks_does_not_matter() -> None:
    chance = np.random.default_rng(0)
    data = chance.normal(size=(300, 8)) @ chance.normal(size=(8, 8)) + 50
    whole, _ = fit_project(data)
    for _ in range(4):
        streamed = StreamingFit(8)
        for part in np.array_split(data[chance.permutation(300)], 7):
            streamed.add(part)
        result = streamed.result()
        np.testing.assert_allclose(result.components, whole.components, atol=1e-8)
        np.testing.assert_allclose(result.explained, whole.explained, atol=1e-10)
    nothing = StreamingFit(4).result()
    assert not nothing.components.any()


def test_equal_vectors_have_equal_colours_in_every_picture(opened: Archive, tmp_path: Path) -> None:
    found = fit_dataset(opened, tmp_path, 3, positions=0, seed=0)["conv2"]
    values = maps(3, (opened.layers["conv2"].entry.channels, 4, 5))
    other = maps(4, values.shape) * 9
    other[:, 1, 2] = values[:, 3, 4]
    ends = (found.low, found.high)
    one, two = (painted(x, found, *ends) for x in (values, other))
    assert one[3, 4].tolist() == two[1, 2].tolist()
    alone = painted(other, found)
    assert alone[1, 2].tolist() != one[3, 4].tolist()  # each scaled to its own range


def test_pca_is_kept_reused_and_drawn(opened: Archive, tmp_path: Path) -> None:
    renderers = {"pca": PCA(fit="dataset", positions=9, tile_size=32)}
    first = render(opened, tmp_path, renderers)
    kept = tmp_path / "pictures" / "pca" / "fit-conv2.npz"
    before = kept.stat().st_mtime_ns
    with np.load(kept) as content:
        assert set(content) == {"mean", "components", "explained", "low", "high"}
    picture = tmp_path / first.pictures(opened.samples[0])[0].path
    picture.unlink()
    render(opened, tmp_path, renderers)
    assert kept.stat().st_mtime_ns == before
    assert picture.is_file()
    kept.write_bytes(b"damaged")
    picture.unlink()
    render(opened, tmp_path, renderers)
    assert kept.stat().st_size > 100


def test_scores_become_colours_within_a_given_range() -> None:
    scores = np.array([[-1.0], [0.0], [1.0], [3.0]])
    assert project_colors(scores).ravel().tolist() == [0, 64, 128, 255]
    limited = project_colors(scores, np.array([0.0]), np.array([2.0]))
    assert limited.ravel().tolist() == [0, 0, 128, 255]


# ------------------------------------------------------------------ grids and mean maps


def test_ranges_over_the_dataset_are_the_statistics(opened: Archive) -> None:
    figures = {name: stored.statistics for name, stored in opened.layers.items()}
    seen = sample_view(opened, opened.samples[2], figures)
    (shown,) = [one for one in seen.layers if one.name == "conv2"]
    everything = opened.layers["conv2"][:]
    picture = Grid(max_channels=3, tile_size=40, normalize="dataset").draw_layer(shown, seen).rgb
    unit = normalize(shown.maps[1], float(everything.min()), float(everything.max()))
    factor = 40 // max(unit.shape)
    rgb = in_steps(unit).repeat(factor, 0).repeat(factor, 1)
    assert drawn(picture, rgb)
    strong = Grid(max_channels=2, select="max", select_over="dataset").choose(shown)
    assert strong.tolist() == np.argsort(-everything.max(axis=(0, 2, 3)))[:2].tolist()
    with pytest.raises(ValueError, match="percentile: has no effect"):
        Grid(normalize="dataset", percentile=(1, 99))


def test_grid_options_change_what_they_say() -> None:
    values = maps()
    one = layer(values)
    signed = (
        Grid(max_channels=1, tile_size=7, symmetric=True, colormap="RdBu_r")
        .draw_layer(one, sample())
        .rgb
    )
    largest = float(np.abs(values[0]).max())
    assert drawn(signed, in_steps(normalize(values[0], -largest, largest), "RdBu_r"))
    order = Grid(max_channels=4, select="max").choose(one)
    assert order.tolist() == np.argsort(-values.max(axis=(1, 2)))[:4].tolist()
    by_number = Grid(max_channels=4, select="max", order="channel").choose(one)
    assert by_number.tolist() == sorted(order.tolist())
    barred = Grid(tile_size=35, normalize="layer", colorbar=True).draw_layer(one, sample()).rgb
    plain = Grid(tile_size=35, normalize="layer").draw_layer(one, sample()).rgb
    assert barred.shape[0] > plain.shape[0]
    np.testing.assert_array_equal(barred[: plain.shape[0]], plain)
    colours = {tuple(color) for color in barred[plain.shape[0] :].reshape(-1, 3).tolist()}
    assert tuple(palette("viridis")[0]) in colours
    smooth = Grid(max_channels=1, tile_size=70, upscale="smooth").draw_layer(one, sample()).rgb
    sharp = Grid(max_channels=1, tile_size=70).draw_layer(one, sample()).rgb
    assert smooth.shape == sharp.shape
    assert len(np.unique(smooth.reshape(-1, 3), axis=0)) > len(
        np.unique(sharp.reshape(-1, 3), axis=0)
    )


@pytest.mark.parametrize("statistic", get_args(OverChannels))
def test_figures_over_channels_equal_numpys(statistic: OverChannels) -> None:
    values = maps().astype(np.float64)
    numpys = {
        "mean": values.mean(axis=0),
        "max": values.max(axis=0),
        "std": values.std(axis=0),
        "norm": np.linalg.norm(values, axis=0),
    }
    np.testing.assert_allclose(over_channels(layer(maps()), statistic), numpys[statistic])
    holed = maps()
    holed[0, 0, 0], holed[:, 1, 1] = np.nan, np.inf
    found = over_channels(layer(holed), statistic)
    assert np.isfinite(found[0, 0])
    assert np.isnan(found[1, 1])
    MeanMap(statistic=statistic)


# ------------------------------------------------------------------ top samples, distributions


@pytest.mark.parametrize("by", ["max", "mean"])
def test_top_samples_are_numpys(opened: Archive, by: str) -> None:
    stored = opened.layers["conv2"]
    everything = stored[:]
    rows, drives = top_rows(stored, np.array([2, 0]), 4, by)
    figure = everything.max(axis=(2, 3)) if by == "max" else everything.mean(axis=(2, 3))
    for channel, mine in ((2, 0), (0, 1)):
        expected = np.argsort(-figure[:, channel], kind="stable")[:4]
        assert rows[mine].tolist() == expected.tolist()
        np.testing.assert_allclose(drives[mine], figure[expected, channel], rtol=1e-5)


def test_samples_that_tie_at_zero_are_blank(tmp_path: Path) -> None:
    """No order among them says anything; a constant channel has no top samples either."""
    values = np.zeros((9, 4, 2, 2), np.float32)
    values[[5, 2], 0, 1, 1] = 3, 7  # two samples respond
    values[:, 2] = -2.5  # all the same
    values[:, 3] = -np.arange(1, 10, dtype=np.float32)[:, None, None]  # none above 0, all differ
    path = write_archive(tmp_path / "a", {"relu": layer_of(values)}, list("abcdefghi"))
    with Archive.open(path) as archive:
        rows, drives = top_rows(archive.layers["relu"], np.arange(4), 3, "max")
        assert rows.tolist() == [[2, 5, -1], [-1, -1, -1], [-1, -1, -1], [0, 1, 2]]
        assert drives[0, :2].tolist() == [7, 3]
        (picture,) = TopSamples(samples=3, channels=(0, 1), tile_size=400).draw_archive(archive)
        texts = [text.text for text in picture.drawing.texts]  # type: ignore[union-attr]
        assert "ch 1" in texts
        assert (
            "channels as given · largest max of the map first (ring) · blank: at 0, or the same"
            in texts[1]
        )
        (chosen,) = TopSamples(samples=3, count=1, tile_size=400).draw_archive(archive)
        assert "channels that peak most above" in chosen.drawing.texts[1].text  # type: ignore[union-attr]


def test_a_ring_marks_the_peak_that_ranks(tmp_path: Path) -> None:
    values = np.zeros((2, 1, 8, 8), np.float32)
    values[0, 0, 1, 6], values[1, 0, 5, 2] = 3, 2
    path = write_archive(tmp_path / "a", {"maps": layer_of(values)}, ["a", "b"])
    with Archive.open(path) as archive:
        view = layer_view(archive.layers["maps"], 1)
        assert archive.image(1).shape[:2] == (8, 8)  # the crop is rows 4 to 7, columns 0 to 3
        for crop, centre in ((1.0, (0.6875, 0.3125)), (0.5, (0.375, 0.625))):
            tiles = [
                TopSamples(tile_size=160, opacity=0, by=by, crop=crop)
                .tile(archive, view, 0, 1, 2.0)
                .pixels.astype(int)
                for by in ("max", "mean")
            ]
            height, width = tiles[0].shape[:2]
            y, x = np.nonzero((tiles[0] != tiles[1]).any(axis=2))
            found = (y.min() + y.max() + 1) / 2, (x.min() + x.max() + 1) / 2
            expected = centre[0] * height, centre[1] * width
            np.testing.assert_allclose(found, expected, atol=1.5)
            assert 16 <= np.ptp(y) <= 24
            assert (tiles[0] == 255).all(axis=2).any()


def test_top_samples_are_drawn_for_every_kind_of_layer(opened: Archive) -> None:
    pictures = list(TopSamples(samples=3, count=2, tile_size=40, crop=0.5).draw_archive(opened))
    assert [picture.layer for picture in pictures] == list(opened.layers)
    assert all(picture.rgb.dtype == np.uint8 for picture in pictures)
    with pytest.raises(ConfigError, match="channels: no channel 99"):
        TopSamples(channels=(99,)).check({"conv1": 4})
    for options in ({"crop": 0.0}, {"opacity": 1.5}, {"samples": 0}, {"channels": (-1,)}):
        with pytest.raises(ConfigError, match=rf"^TopSamples: {next(iter(options))}.*: must be"):
            TopSamples(**options)  # type: ignore[arg-type]


def test_distributions_are_numpys(opened: Archive) -> None:
    for name, stored in opened.layers.items():
        values = np.moveaxis(stored[:], stored.entry.channel_axis, 0)
        values = values.reshape(len(values), -1).astype(np.float64)
        with Progress("test", total=7) as progress:
            found = distribution(stored, list(range(7)), 20, progress)
        counts, _ = np.histogram(values, found.edges)
        assert found.counts.tolist() == counts.tolist(), name
        assert found.counts.sum() == values.size
        same, dead = values.min(axis=1) == values.max(axis=1), (values == 0).all(axis=1)
        assert found.dead.tolist() == np.flatnonzero(dead).tolist()
        assert found.constant.tolist() == np.flatnonzero(same & ~dead).tolist()
        on = (values > 0).all(axis=1) & ~same
        assert found.always_on.tolist() == np.flatnonzero(on).tolist()
        assert found.sparsity == pytest.approx((values == 0).mean())
        low, high = values.min(axis=1), values.max(axis=1)
        near = (values >= (high - 0.01 * (high - low))[:, None]).mean(axis=1) > 0.5
        assert found.saturated.tolist() == np.flatnonzero(near & (low < high)).tolist()
        assert found.nonfinite == 0
    pictures = list(Histogram(bins=10, dpi=50).draw_archive(opened))
    assert [picture.layer for picture in pictures] == list(opened.layers)
    assert pictures[0].rgb.shape == (180, 450, 3)
    assert b"<svg" in encode(pictures[0].drawing, "svg")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_distributions_hold_values_that_storage_rounds_beyond_the_range(
    dtype: str, tmp_path: Path
) -> None:
    storage = Storage(dtype=dtype)
    extract(tiny_extraction(tmp_path / "a", storage=storage))
    with Archive.open(tmp_path / "a") as archive:
        for stored in archive.layers.values():
            beyond = stored[:].astype(np.float64).max() > stored.statistics["max"].max()
            found = distribution(stored, list(range(len(stored))), 20)
            assert found.counts.sum() == np.prod(stored.shape), (stored.name, beyond)


def test_distributions_leave_prefix_tokens_out(tmp_path: Path) -> None:
    tokens = random(6, 5, 3)
    tokens[:2, 0] *= 0.1  # class tokens within the range of the others
    tokens[2:, 0] *= 50
    layers = {"tokens": layer_of(tokens, prefix_tokens=1, class_token=True, grid=(2, 2))}
    path = write_archive(tmp_path / "a", layers, list("abcdef"))
    with Archive.open(path) as archive:
        found = distribution(archive.layers["tokens"], list(range(6)), 20)
        inside = tokens[:, 1:].astype(np.float64)
        assert found.counts.tolist() == np.histogram(inside, found.edges)[0].tolist()
        assert found.counts.sum() == inside.size


# ------------------------------------------------------------------ what is drawn again


def test_only_what_is_missing_or_changed_is_drawn(opened: Archive, tmp_path: Path) -> None:
    grid, means = Grid(max_channels=2, tile_size=16), MeanMap(tile_size=16)
    first = render(opened, tmp_path, {"grid": grid, "mean": means})
    files = [tmp_path / p.path for one in opened.samples for p in first.pictures(one)]
    assert len(files) == 7 * (len(opened.layers) + 1)
    before = {path: path.stat().st_mtime_ns for path in files}
    files[3].unlink()
    again = render(opened, tmp_path, {"grid": grid, "mean": means})
    assert again.pictures(opened.samples[4]) == first.pictures(opened.samples[4])
    after = {path: path.stat().st_mtime_ns for path in files}
    assert {path for path in files if after[path] != before[path]} == set(
        files[: len(opened.layers)]
    )  # the sample's grids, not its mean map
    render(opened, tmp_path, {"grid": Grid(max_channels=3, tile_size=16), "mean": means})
    changed = {path for path in files if path.stat().st_mtime_ns != after[path]}
    assert changed == {path for path in files if "grid" in path.parts}


def test_samples_are_chosen_by_label(opened: Archive) -> None:
    samples = [
        dataclasses.replace(sample, label=i % 2, label_name=("cat", "dog")[i % 2])
        for i, sample in enumerate(opened.samples)
    ]
    assert [s.index for s in with_labels(samples, ["dog"])] == [1, 3, 5]
    assert [s.index for s in with_labels(samples, ["0"])] == [0, 2, 4, 6]
    assert with_labels(samples, []) == samples
    with pytest.raises(ConfigError, match=r"render\.labels: .*'dgo'.*dog"):
        with_labels(samples, ["dgo"])


def test_the_first_twenty_samples_are_drawn_unless_others_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    samples = [Sample(id=f"{n:02}", label=n % 2, label_name="ab"[n % 2]) for n in range(60)]

    def chosen(**options: object) -> list[str]:
        caplog.clear()
        return [sample.id for sample in chosen_samples(samples, RenderOptions(**options))]  # type: ignore[arg-type]

    assert chosen() == [f"{n:02}" for n in range(20)]
    assert "drawing the first 20 of 60 samples; render.samples=all draws all" in caplog.text
    assert chosen(labels=("b",)) == [f"{n:02}" for n in range(1, 40, 2)]
    assert "the first 20 of 30 samples" in caplog.text
    assert len(chosen(samples=("all",))) == 60
    assert len(chosen(samples=("0:21",))) == 21
    assert not caplog.text
    assert len(chosen_samples(samples[:20], RenderOptions())) == 20
    assert not caplog.text
    with pytest.raises(ConfigError, match=r"render\.labels: no chosen sample has 'c'"):
        chosen(labels=("c",))


def test_how_much_will_be_drawn_is_said(
    opened: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    drawn = render(opened, tmp_path, {"grid": Grid(max_channels=2, tile_size=16)})
    count = sum(len(drawn.pictures(sample)) for sample in drawn.samples)
    assert count == len(drawn.samples) * len(opened.layers)
    assert f"render: {count} pictures of {len(drawn.samples)} samples, about " in caplog.text


def test_a_view_knows_the_dataset_without_being_told(opened: Archive) -> None:
    statistics = {layer.name: layer.statistics for layer in opened.layers.values()}
    told = sample_view(opened, opened.samples[2], statistics)
    seen = sample_view(opened, opened.samples[2])
    for grid in (
        Grid(normalize="dataset"), Grid(select="variance", select_over="dataset")
    ):  # fmt: skip
        for one, other in zip(grid.draw(seen), grid.draw(told), strict=True):
            np.testing.assert_array_equal(one.rgb, other.rgb)


def test_names_are_suggested_in_the_order_of_the_samples(opened: Archive) -> None:
    samples = [dataclasses.replace(s, label_name=f"kind {s.label}") for s in opened.samples]
    in_order = "choose from: kind 0, 0, kind 1, 1, kind 2, 2, kind 3, 3$"
    with pytest.raises(ConfigError, match=in_order):
        with_labels(samples, ["x"])
    ids = [f"{folder}/{name}.png" for folder in "ab" for name in ("cat", "dog")]
    forms = "cat.png, cat, a/cat, dog.png, dog, a/dog, b/cat, b/dog, a/cat.png"
    with pytest.raises(ConfigError, match=f"choose from: {forms}"):
        choose_rows(ids, ["x"])


def test_a_layer_without_finite_values_has_a_histogram(tmp_path: Path) -> None:
    maps = np.full((3, 2, 4, 4), np.nan, np.float32)
    with Archive.open(archive_of(tmp_path / "a", {"c$o$nv": maps})) as archive:
        (picture,) = Histogram().draw_archive(archive)
    svg = encode(picture.drawing, "svg").decode()
    assert "96 not finite" in svg
    assert "c$o$nv" in svg
    assert (picture.rgb == (59, 82, 139)).all(axis=2).sum() == 0
