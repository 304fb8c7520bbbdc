"""A day with slides: five options changed, one file to hand out, a figure whose text is text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import Archive
from tests.conftest import Run
from tests.helpers.small_vit import MODEL


@pytest.mark.slow
def test_slides(run: Run, tmp_path: Path) -> None:
    where = f"archive={tmp_path}/archive"
    chosen = ("dataset.limit=3", "layers.include=[conv_stem]", "device=cpu", where)
    code, _, err = run("extract", *chosen)
    assert code == 0, err
    changed = ("renderers.grid.titles=none", "renderers.grid.max_channels=all",
               "renderers.grid.columns=8", "renderers.grid.tile_size=100",
               "renderers.grid.colormap=magma")  # fmt: skip
    code, said, err = run("render", where, "renderers=[grid]", *changed, "render.samples=1",
                          "render.figures=[svg]", "render.single_file=true",
                          folder="slides")  # fmt: skip
    assert code == 0, err
    assert "one file:" in said
    [picture] = (tmp_path / "slides" / "pictures" / "grid").rglob("*.png")
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape == (2 * 12 + 4 * 100 + 3 * 8, 2 * 12 + 8 * 100 + 7 * 8, 3)  # 32 maps
    [figure] = (tmp_path / "slides" / "pictures" / "grid").rglob("*.svg")
    assert "<text" not in figure.read_text(encoding="utf-8")
    code, _, err = run("render", where, "renderers=[grid]", "render.samples=1",
                       "render.figures=[svg]", folder="titled")  # fmt: skip
    assert code == 0, err
    [figure] = (tmp_path / "titled" / "pictures" / "grid").rglob("*.svg")
    assert "conv_stem · ch 0</text>" in figure.read_text(encoding="utf-8")
    code, _, err = run(
        "render", where, "renderers=[grid]", "renderers.grid.tile_siz=3", folder="wrong"
    )
    assert code == 2
    assert "did you mean tile_size?" in err


@pytest.mark.slow
def test_class_tokens_as_bars(run: Run, tmp_path: Path) -> None:
    """The layers of a transformer by their class tokens, of the first two images, as one file."""
    words = (*MODEL, "layers.include=[blocks.0,blocks.1]", "layers.types=[]")
    code, _, err = run("extract", *words, f"archive={tmp_path}/all")
    assert code == 0, err
    code, _, err = run("extract", *words, "reduction=cls_token", f"archive={tmp_path}/cls")
    assert code == 0, err
    with Archive.open(tmp_path / "all") as every, Archive.open(tmp_path / "cls") as tokens:
        for name in ("blocks.0", "blocks.1"):
            np.testing.assert_array_equal(tokens.layers[name][:], every.layers[name][:][:, 0])
        first = tokens.layers["blocks.1"][0]
    code, said, err = run("render", f"archive={tmp_path}/cls", "renderers=[grid,overview]",
                          "render.samples=[0]", "render.figures=[svg]",
                          "render.single_file=true", folder="slides")  # fmt: skip
    assert code == 0, err
    assert "one file:" in said
    [figure] = (tmp_path / "slides" / "pictures" / "grid" / "blocks.1").glob("*.svg")
    text = figure.read_text(encoding="utf-8")
    assert f"largest: ch {first.argmax()} ({first.max():.3g})" in text
    assert "random weights, seed 0" in text
    index_page = (tmp_path / "slides" / "gallery" / "index.html").read_text(encoding="utf-8")
    assert "1 of 2 samples" in index_page
