"""Attention pictures: what is drawn equals NumPy's rows of the stored weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from pipeline import Archive, RenderOptions, render
from pipeline.cli.main import main
from pipeline.common.errors import ConfigError
from pipeline.gallery.pages import write_gallery
from pipeline.gallery.single_file import write_single_file
from pipeline.renderers.attention import AttentionMaps
from pipeline.renderers.mean_map import MeanMap
from pipeline.renderers.show import show
from pipeline.renderers.top_samples import TopSamples
from pipeline.rendering.attention_maps import CAVEAT, attention_maps
from pipeline.rendering.drawing.tile_layout import GAP, MARGIN
from pipeline.rendering.views import SampleView, as_layer_view, sample_view
from scripts.synthetic_archive import layer_of, write_archive
from tests.helpers.small_vit import MODEL

HEADS, PREFIX, GRID, SIDE = 3, 2, (4, 5), 40
TOKENS = PREFIX + GRID[0] * GRID[1]
IDS = ["a.png", "b.png"]
FULL = ("head", "query", "key")


def softmax(shape: tuple[int, ...], seed: int) -> np.ndarray:
    values = np.exp(2 * np.random.default_rng(seed).standard_normal(shape))
    return (values / values.sum(-1, keepdims=True)).astype(np.float32)


WEIGHTS = softmax((2, HEADS, TOKENS, TOKENS), 0)
SECOND = softmax((2, HEADS, TOKENS, TOKENS), 1)
PLAIN = softmax((2, HEADS, 20, 20), 2)
ROW = np.ascontiguousarray(SECOND[:, :, 0])
ROLLOUT = softmax((2, 1, TOKENS), 3)
IMAGES = np.random.default_rng(4).integers(0, 256, (2, 3, SIDE, SIDE), dtype=np.uint8)
KNOWN = {"grid": GRID, "prefix_tokens": PREFIX, "class_token": True}
LAYERS = {
    "blocks.0.attn@attention": layer_of(WEIGHTS, axes=FULL, **KNOWN),
    "blocks.0": layer_of(softmax((2, TOKENS, 6), 5), **KNOWN),
    "blocks.1.attn@attention": layer_of(
        ROW, axes=("channel", "token"), reduction="Attention(query=class, heads=all)", **KNOWN
    ),
    "blocks.2.attn_drop": layer_of(PLAIN, axes=FULL, grid=GRID),
    "windows.attn@attention": layer_of(softmax((2, 2, 32, 16), 6), axes=FULL),
    "output@rollout": layer_of(ROLLOUT, axes=("channel", "token"), **KNOWN),
}  # fmt: skip


def of(name: str, query: object) -> np.ndarray:
    """Return a layer's maps of the second sample, `(head, height, width)`, by NumPy alone."""
    if name == "blocks.1.attn@attention":
        return ROW[1][:, PREFIX:].reshape(HEADS, *GRID)
    if name == "output@rollout":
        return ROLLOUT[1][:, PREFIX:].reshape(1, *GRID)
    weights, prefix = (WEIGHTS, PREFIX) if name.startswith("blocks.0") else (PLAIN, 0)
    rows = weights[1].astype(np.float64)
    if query == "class":
        row = rows[:, 0]
    elif query == "mean":
        row = rows.mean(axis=1)
    else:
        row = rows[:, prefix + query[0] * GRID[1] + query[1]]  # type: ignore[index]
    return row[:, prefix:].reshape(HEADS, *GRID)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    path = tmp_path_factory.mktemp("attended") / "archive"
    write_archive(path, LAYERS, IDS, images=lambda a, b: IMAGES[a:b], image_shape=(3, SIDE, SIDE))
    return Archive.open(path)


@pytest.fixture
def sample(archive: Archive) -> SampleView:
    return sample_view(archive, archive.samples[1])


def painted(values: np.ndarray, high: float, name: str = "inferno") -> np.ndarray:
    rgb = mpl.colormaps[name](np.clip(values / high, 0, 1), bytes=True)[..., :3]
    return rgb.repeat(SIDE // GRID[1], axis=0).repeat(SIDE // GRID[1], axis=1)


def tiles_of(picture: np.ndarray, size: tuple[int, int], columns: int) -> list[np.ndarray]:
    """Cut the first row of a picture without texts into its tiles."""
    return [
        picture[MARGIN : MARGIN + size[0], x : x + size[1]]
        for x in range(MARGIN, MARGIN + columns * (SIDE + GAP), SIDE + GAP)
    ]


@pytest.mark.parametrize(
    ("name", "query", "drawn_as"),
    [
        ("blocks.0.attn@attention", "class", "class"),
        ("blocks.0.attn@attention", "mean", "mean"),
        ("blocks.0.attn@attention", (3, 1), (3, 1)),
        ("blocks.1.attn@attention", "class", None),
        ("blocks.2.attn_drop", "class", "mean"),
        ("blocks.2.attn_drop", (0, 4), (0, 4)),
        ("output@rollout", "class", None),
    ],
)
def test_maps_are_the_rows_of_the_weights(
    sample: SampleView, name: str, query: object, drawn_as: object
) -> None:
    renderer = AttentionMaps(query=query, overlay=0, tile_size=SIDE, titles="none", columns=9)  # type: ignore[arg-type]
    expected = of(name, drawn_as)
    view = next(layer for layer in sample.layers if layer.name == name)
    maps = attention_maps(view, query)  # type: ignore[arg-type]
    assert maps is not None
    np.testing.assert_allclose(maps.maps, expected, rtol=1e-6)
    shown = [expected.astype(np.float64).mean(axis=0)]
    shown += [*expected] if len(expected) > 1 else []
    picture = {p.layer: p for p in renderer.draw(sample)}[name].rgb
    tiles = tiles_of(picture, (32, SIDE), 1 + len(shown))
    for tile, values in zip(tiles[1:], shown, strict=True):
        off = np.abs(tile.astype(int) - painted(values, values.max()).astype(int))
        if isinstance(query, tuple):  # whose patch is framed
            top, left = 8 * query[0], 8 * query[1]
            assert (tile[[top, top + 7], left : left + 8] == 255).all()
            off[max(0, top - 1) : top + 9, max(0, left - 1) : left + 9] = 0
        assert off.max() <= 6  # a step of the colour table at a rounding edge
        assert (off > 0).mean() < 0.03


def texts(picture: object) -> list[str]:
    return [text.text for text in picture.drawing.texts]  # type: ignore[attr-defined]


def test_the_overview_shows_the_mean_of_every_layer_with_a_grid(sample: SampleView) -> None:
    renderer = AttentionMaps(overlay=0, tile_size=SIDE, titles="none", columns=9)
    overview, *pictures = renderer.draw(sample)
    names = ["blocks.0.attn@attention", "blocks.1.attn@attention", "blocks.2.attn_drop",
             "output@rollout"]  # fmt: skip
    assert overview.layer is None
    assert [picture.layer for picture in pictures] == names
    for tile, name in zip(tiles_of(overview.rgb, (32, SIDE), 5)[1:], names, strict=True):
        mean = of(name, "mean" if "drop" in name else "class").astype(np.float64).mean(axis=0)
        off = np.abs(tile.astype(int) - painted(mean, mean.max()).astype(int))
        assert off.max() <= 6
        assert (off > 0).mean() < 0.03


def test_texts_state_range_share_and_query(sample: SampleView) -> None:
    wide = {"tile_size": 300}
    first = next(
        p for p in AttentionMaps(**wide).draw(sample) if p.layer == "blocks.0.attn@attention"
    )  # type: ignore[arg-type]
    maps = of("blocks.0.attn@attention", "class")
    words = texts(first)
    assert "mean over heads" in words
    for head in range(HEADS):
        assert f"head {head}" in words
        assert f"0 … {maps[head].max():.2g} · sum {maps[head].sum():.2f}" in words
    note = " ".join(words)
    assert "from the class token" in note
    assert "range per map" in note
    renderer = AttentionMaps(normalize="layer", heads=(2, 0), percentile=90, **wide)  # type: ignore[arg-type]
    shared = next(p for p in renderer.draw(sample) if p.layer == "blocks.0.attn@attention")
    shown = np.stack([maps.mean(axis=0), maps[2], maps[0]])
    words = texts(shared)
    assert [word for word in words if word.startswith("head")] == ["head 2", "head 0"]
    assert sum(f"0 … {np.percentile(shown, 90):.2g} ·" in word for word in words) == 3


def test_known_attention_gives_known_pictures(sample: SampleView) -> None:
    """Head 0 attends from every patch to its right neighbour, head 1 to the patch below."""
    weights = np.zeros((2, TOKENS, TOKENS), np.float32)
    for patch in range(20):
        for head, step in enumerate((1, GRID[1])):
            weights[head, PREFIX + patch, PREFIX + (patch + step) % 20] = 1
    known = as_layer_view(
        "k", "k", FULL, weights, grid=GRID, prefix_tokens=PREFIX, class_token=True
    )
    renderer = AttentionMaps(query=(1, 2), overlay=0, tile_size=SIDE, titles="none", columns=9)
    [_, picture] = renderer.draw(replace(sample, layers=[known]))
    _, mean, right, below = tiles_of(picture.rgb, (32, SIDE), 4)
    top, bottom = (mpl.colormaps["inferno"](end, bytes=True)[:3] for end in (1.0, 0.0))
    for tile, places in ((right, {(1, 3)}), (below, {(2, 2)}), (mean, {(1, 3), (2, 2)})):
        for y, x in np.ndindex(GRID):
            centre = tile[8 * y + 4, 8 * x + 4]
            np.testing.assert_array_equal(centre, top if (y, x) in places else bottom)


@pytest.mark.parametrize(
    ("reduction", "prefix", "query", "said"),
    [
        ("Attention(query=class, heads=all)", 2, "class", "from the class token"),
        ("Attention(query=class, heads=all)", 0, "class", "averaged over queries"),
        ("Attention(query=class, heads=all)", 0, "mean", "averaged over queries"),
        ("Attention(query=mean, heads=mean)", 2, "mean", "averaged over queries"),
        ("Attention(query=mean, heads=mean)", 2, "class", "averaged over queries"),
        ("none", 2, "class", "of one query (as extracted)"),
    ],
)
def test_a_reduced_layer_says_whose_row_it_holds(
    sample: SampleView, reduction: str, prefix: int, query: str, said: str
) -> None:
    row = replace(sample.layers[2], reduction=reduction, class_token=prefix > 0)
    picture = [*AttentionMaps(query=query).draw(replace(sample, layers=[row]))][-1]  # type: ignore[arg-type]
    assert f"attention {said} to each patch" in " ".join(texts(picture))


def test_attention_lies_over_the_input_and_the_query_is_framed(sample: SampleView) -> None:
    opacity, (y, x) = 0.6, (1, 2)
    values = of("blocks.0.attn@attention", (y, x))[1]
    plain = {"tile_size": SIDE, "titles": "none", "heads": (1,), "columns": 9}
    renderer = AttentionMaps(query=(y, x), overlay=opacity, **plain)  # type: ignore[arg-type]
    picture = {p.layer: p for p in renderer.draw(sample)}["blocks.0.attn@attention"].rgb
    _, _, tile = tiles_of(picture, (SIDE, SIDE), 3)
    unit = Image.fromarray((values / values.max()).astype(np.float32))
    large = np.asarray(unit.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(np.float64)
    colors = mpl.colormaps["inferno"](large, bytes=True)[..., :3]
    alpha = opacity * large[..., None]
    grey = np.asarray(Image.fromarray(IMAGES[1].transpose(1, 2, 0)).convert("L"))[..., None] * 0.6
    expected = alpha * colors + (1 - alpha) * grey
    frame = np.zeros((SIDE, SIDE), bool)
    frame[9:21, 15:25] = True
    assert np.abs(tile - expected)[~frame].max() <= 6
    assert (tile[10, 16:24] == 255).all()
    assert (tile[19, 16:24] == 255).all()
    assert (tile[10:20, [16, 23]] == 255).all()
    assert (tile[9:21, [15, 24]] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": (4, 0)}, "the grid has 4 rows and 5 columns"),
        ({"query": (0, 5)}, "the grid has 4 rows and 5 columns"),
        ({"heads": (3,)}, "heads: no head 3 in blocks.0.attn@attention; use 0 to 2"),
    ],
)
def test_what_no_layer_can_show_is_refused(
    archive: Archive, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^renderers.a.*{message}"):
        render(archive, tmp_path, {"a": AttentionMaps(**options)})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="holds no attention weights"):
        render(archive.with_layers(["blocks.0"]), tmp_path, {"a": AttentionMaps()})


def test_pictures_are_files_and_layers_without_a_grid_are_left_out(
    archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = RenderOptions(num_workers=0)
    with caplog.at_level(logging.WARNING):
        rendered = render(archive, tmp_path, {"attention": AttentionMaps(query=(0, 0))}, options)
    for name, reason in {
        "windows.attn@attention": "the token grid is not known",
        "blocks.1.attn@attention and 1 more": "one row per head is stored",
    }.items():
        assert f"{name}: {reason}" in caplog.text
    for stored in rendered.samples:
        pictures = rendered.pictures(stored)
        assert [picture.layer for picture in pictures] == [
            None, "blocks.0.attn@attention", "blocks.2.attn_drop",
        ]  # fmt: skip
        assert all((tmp_path / picture.path).is_file() for picture in pictures)
    write_gallery(archive, rendered)
    page = (tmp_path / "gallery" / "samples" / "000001-b.html").read_text("utf-8")
    assert page.count(CAVEAT) == 1
    assert page.count("pictures/attention/") >= 3
    single = write_single_file(archive, rendered).read_text("utf-8")
    assert single.count(CAVEAT) == 1


def test_a_notebook_shows_the_heads(archive: Archive) -> None:
    shown = show(archive, "b", "blocks.0.attn@attention")
    assert [word for word in texts(shown) if word.startswith("head")] == [
        "head 0",
        "head 1",
        "head 2",
    ]
    assert "ch 1" in texts(show(archive, "b", "windows*"))


def test_other_renderers_lay_the_class_tokens_row_over_the_input(
    archive: Archive, sample: SampleView
) -> None:
    view, row = sample.layers[0], of("blocks.0.attn@attention", "class")
    np.testing.assert_array_equal(view.maps, WEIGHTS[1])  # elsewhere, all weights are the maps
    image = IMAGES[1].transpose(1, 2, 0)
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None] * 0.6
    unit = (row[2] - row[2].min()) / (row[2].max() - row[2].min())
    large = np.asarray(
        Image.fromarray(unit.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    ).astype(np.float64)
    alpha = 0.85 * large[..., None]
    colors = mpl.colormaps["inferno"](large, bytes=True)[..., :3]
    tile = TopSamples(tile_size=SIDE).tile(archive, view, 2, 1, 0.5)
    assert np.abs(tile.pixels - (alpha * colors + (1 - alpha) * grey)).max() <= 6
    over = MeanMap(overlay=1, tile_size=SIDE).tile(view, sample)
    assert over.note.startswith("5×4 · ")
    windows = next(layer for layer in sample.layers if layer.name.startswith("windows"))
    assert MeanMap(overlay=1, tile_size=SIDE).tile(windows, sample).note.startswith("16×32 · ")
    tokens = replace(sample.layers[1], grid=None, maps=np.ones((6, 1, 20), np.float32))
    for unknown in (windows, tokens):
        plain = TopSamples(tile_size=SIDE).tile(archive, unknown, 0, 1, 0.5)
        np.testing.assert_array_equal(plain.pixels, image)


@pytest.mark.parametrize("query", ["class", "all"])
def test_extracted_attention_is_drawn(
    tmp_path: Path, query: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("run", *MODEL, "+model.arguments.reg_tokens=2", "layers=attention",
             f"reduction.query={query}", "renderers=[attention]")  # fmt: skip
    assert main((*words, f"hydra.run.dir={tmp_path}")) == 0
    capfd.readouterr()
    with Archive.open(tmp_path / "archive") as archive:
        view = sample_view(archive, archive.samples[1])
        assert [layer.name for layer in view.layers] == [
            "blocks.0.attn@attention", "blocks.1.attn@attention", "output@rollout",
        ]  # fmt: skip
        for layer in view.layers:
            stored = archive.layers[layer.name][1]
            row = stored[:, 0] if query == "all" else stored
            maps = attention_maps(layer)
            assert maps is not None
            np.testing.assert_array_equal(maps.maps, row[:, 3:].reshape(-1, 4, 4))
            assert (tmp_path / "pictures" / "attention" / layer.name).is_dir()
