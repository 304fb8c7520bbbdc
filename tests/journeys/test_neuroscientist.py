"""A day with RSA: photos → pooled activations → arrays → dissimilarities with scikit-learn."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import squareform
from scipy.stats import rankdata, spearmanr
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


@pytest.mark.slow
def test_a_brain_against_every_layer(run: Run, arrays: Path, tmp_path: Path) -> None:
    """Three subjects' RDMs, one of them without noise, against all layers; the layers' own out."""
    archive = str(tmp_path / "archive")
    code, _, err = run("export", archive, str(tmp_path / "rdms"), "--rdm")
    assert code == 0, err
    own = {name: np.load(tmp_path / "rdms" / f"{name}.npy") for name in LAYERS}
    upper = np.triu_indices(8, 1)
    for name, rdm in own.items():
        correlations = np.corrcoef(np.load(arrays / f"{name}.npy").astype(np.float64))
        np.testing.assert_allclose(rdm[upper], (1 - correlations)[upper], atol=1e-5)
    noise = np.random.default_rng(0).normal(scale=0.2, size=(3, 8, 8))
    noise += noise.transpose(0, 2, 1)
    noise[0] = 0
    brains = (own["blocks.2"] + noise) * (1 - np.eye(8))
    np.save(tmp_path / "brains.npy", brains)
    code, said, err = run("similarity", archive, "--against", str(tmp_path / "brains.npy"),
                          "--bootstrap", "50", "--json", "--out", f"{tmp_path}/rsa")  # fmt: skip
    assert code == 0, err
    found = json.loads(said)
    for layer in found["layers"]:
        each = [spearmanr(own[layer["layer"]][upper], brain[upper]).statistic for brain in brains]
        np.testing.assert_allclose(layer["each"], each, atol=1e-6)
        assert layer["value"] == pytest.approx(np.mean(each), abs=1e-6)
        assert layer["low"] <= layer["value"] <= layer["high"]
    best = max(found["layers"], key=lambda layer: layer["value"])
    assert best["layer"] == "blocks.2"
    ranks = np.array([rankdata(brain[upper]) for brain in brains])
    top = np.mean([spearmanr(one, ranks.mean(axis=0)).statistic for one in ranks])
    low = np.mean(
        [spearmanr(ranks[i], np.delete(ranks, i, axis=0).mean(axis=0)).statistic for i in range(3)]
    )
    assert found["ceiling"] == pytest.approx([low, top], abs=1e-9)
    assert (tmp_path / "rsa" / "against.pdf").read_bytes().startswith(b"%PDF")
