"""A day with RSA: photos → pooled activations → arrays → dissimilarities with scikit-learn."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import squareform
from scipy.stats import spearmanr
from sklearn.metrics import pairwise_distances

from pipeline import Archive
from tests.conftest import Run

LAYERS = ("conv_stem", "blocks.2", "blocks.6")


@pytest.fixture
def arrays(run: Run, tmp_path: Path) -> Path:
    chosen = f"layers.include=[{','.join(LAYERS)}]"
    where = f"archive={tmp_path}/archive"
    code, _, err = run("extract", "dataset.limit=8", chosen, "device=cpu", where)
    assert code == 0, err
    code, said, err = run("export", f"{tmp_path}/archive", f"{tmp_path}/arrays", "--pool", "mean")
    assert code == 0, err
    assert said.count("exported:") == 2 + len(LAYERS)  # samples.csv and provenance.json
    return tmp_path / "arrays"


@pytest.mark.slow
def test_dissimilarities_of_layers(arrays: Path) -> None:
    with (arrays / "samples.csv").open(encoding="utf-8", newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    matrices = {}
    with Archive.open(arrays.parent / "archive") as archive:
        assert ids == [sample.id for sample in archive.samples]
        for name in LAYERS:
            features = np.load(arrays / f"{name}.npy")
            np.testing.assert_allclose(
                features, archive.layers[name][:].mean(axis=(2, 3), dtype=np.float64), rtol=1e-4
            )
            matrix = pairwise_distances(features, metric="correlation")
            np.testing.assert_allclose(matrix, 1 - np.corrcoef(features), atol=1e-4)
            matrices[name] = squareform(matrix, checks=False)
    near = spearmanr(matrices["conv_stem"], matrices["blocks.2"]).statistic
    far = spearmanr(matrices["conv_stem"], matrices["blocks.6"]).statistic
    assert near > far  # neighbours see more alike
