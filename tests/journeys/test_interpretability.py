"""A day with a vision transformer: a linear probe on class tokens, and maps of its attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader

from pipeline import ActivationDataset, Archive
from tests.conftest import Run
from tests.test_attention import MODEL


@pytest.mark.slow
def test_probe_and_attention(run: Run, tmp_path: Path) -> None:
    layers = "layers.include=[blocks.1,blocks.1.attn.attn_drop]"
    images = ("dataset=synthetic", "dataset.samples=40", "dataset.limit=null", "dataset.classes=2")
    words = (*MODEL, *images, layers, "layers.types=[]", "model.fused_attention=false")
    code, _, err = run("extract", *words, f"archive={tmp_path}/vit")
    assert code == 0, err
    dataset = ActivationDataset(tmp_path / "vit", "blocks.1", ids=True)
    loader = DataLoader(dataset, batch_size=16, shuffle=True)
    features, labels, rows = [], [], []
    for found, label, row, ids in loader:
        features.append(found["blocks.1"][:, 0].numpy())  # the class token
        labels.append(label.numpy())
        rows += list(zip(row.tolist(), ids, strict=True))
    tokens, targets = np.concatenate(features), np.concatenate(labels)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1e4, max_iter=5000))
    probe.fit(tokens, targets)
    assert probe.score(tokens, targets) > 0.8  # 40 vectors of 24 numbers can be told apart
    with Archive.open(tmp_path / "vit") as archive:
        assert all(archive.samples[row].id == name for row, name in rows)
        order = [row for row, _ in rows]
        np.testing.assert_array_equal(tokens, archive.layers["blocks.1"][order][:, 0])
        entry = archive.layers["blocks.1"].entry
        attention = archive.layers["blocks.1.attn.attn_drop"][3]  # (head, query, key)
        assert entry.grid == (4, 4)
        to_patches = attention[:, 0, entry.prefix_tokens :].reshape(-1, *entry.grid)
        assert to_patches.shape == (3, 4, 4)
        np.testing.assert_allclose(to_patches.sum(axis=(1, 2)) + attention[:, 0, 0], 1, atol=1e-5)
