"""A reduction that keeps drawn positions says which, and keeps what was there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.pack import pack
from pipeline.archive.tools.verify import verify
from pipeline.capture.selector import LayerSelector
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.extraction.reductions.per_layer import PerLayer
from pipeline.extraction.reductions.subsets import RandomPositions
from tests.conftest import Run, tiny_extraction
from tests.helpers.small_vit import MODEL


def test_drawn_positions_are_those_that_the_archive_names(opened: Archive, tmp_path: Path) -> None:
    path = tmp_path / "drawn"
    extract(tiny_extraction(path, reduction=RandomPositions(count=5, seed=3)))
    assert verify(path)["samples"] == 7
    with Archive.open(path) as archive:
        for name in ("conv1", "conv2"):
            layer, whole = archive.layers[name], opened.layers[name][:]
            assert layer.entry.axes == ("token", "channel")
            flat = whole.reshape(*whole.shape[:2], -1)
            assert layer.position.shape == (7, 5)
            assert layer.position.max() < flat.shape[2]
            assert all(len(set(row)) == 5 for row in layer.position.tolist())
            expected = np.stack([flat[row, :, layer.position[row]] for row in range(7)])
            np.testing.assert_array_equal(layer[:], expected)
            np.testing.assert_allclose(layer.sample_max, expected.max(axis=1))
        assert (
            archive.layers["conv1"].position.tolist()
            != archive.layers["conv1"].position[0].tolist()
        )
        np.testing.assert_array_equal(archive.layers["fc"][:], opened.layers["fc"][:])
        with pytest.raises(ValueError, match="fc: stores all positions"):
            _ = archive.layers["fc"].position
        pack(archive, tmp_path / "packed.h5")
        with Archive.open(tmp_path / "packed.h5") as packed:
            expected = archive.layers["conv2"].position
            np.testing.assert_array_equal(packed.layers["conv2"].position, expected)


def test_the_draw_depends_on_seed_and_row_alone(tmp_path: Path) -> None:
    positions = []
    for batch_size, seed in ((2, 0), (3, 0), (2, 1)):
        path = tmp_path / f"{batch_size}-{seed}"
        extract(tiny_extraction(
            path, reduction=PerLayer(layers={"conv*": "positions:4"}) if seed == 0
            else RandomPositions(count=4, seed=seed), loader=Loader(batch_size=batch_size),
            layers=LayerSelector(include=("conv1",)),
        ))  # fmt: skip
        with Archive.open(path) as archive:
            positions.append(archive.layers["conv1"].position.tolist())
    assert positions[0] == positions[1] != positions[2]


def test_tokens_are_drawn_without_prefix_tokens(run: Run, tmp_path: Path) -> None:
    words = ("layers.include=[blocks.0,blocks.1]", "layers.types=[]", f"archive={tmp_path}/a")
    reduction = ("reduction=per_layer", "reduction.layers={blocks.0:positions:16}")
    code, _, err = run("extract", *MODEL, *words, *reduction)
    assert code == 0, err
    code, _, err = run("extract", *MODEL, words[0], words[1], f"archive={tmp_path}/b")
    assert code == 0, err
    with Archive.open(tmp_path / "a") as drawn, Archive.open(tmp_path / "b") as whole:
        layer, tokens = drawn.layers["blocks.0"], whole.layers["blocks.0"][:]
        assert sorted(layer.position[0].tolist()) == list(range(16))  # all of them
        for row in range(2):
            np.testing.assert_array_equal(layer[row], tokens[row, 1 + layer.position[row]])


def test_a_layer_with_fewer_positions_keeps_all(run: Run, tmp_path: Path) -> None:
    words = ("model=tiny", "dataset=synthetic", "dataset.limit=2", "layers.include=[conv1,pool]")
    where = f"archive={tmp_path}/a"
    code, _, err = run("run", *words, "reduction=positions", "reduction.count=200", where)
    assert code == 0, err
    with Archive.open(tmp_path / "a") as archive:
        assert archive.layers["conv1"].shape[1] == 200
        assert archive.layers["pool"].position.tolist() == [[0], [0]]
