"""A day with a vision transformer: a linear probe on class tokens, and maps of its attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader

from pipeline import ActivationDataset, ActivationLoader, Archive
from tests.conftest import Run
from tests.helpers.small_vit import MODEL


@pytest.mark.slow
def test_probe_and_attention(run: Run, tmp_path: Path) -> None:
    layers = "layers.include=[blocks.1,blocks.1.attn@attention]"
    images = ("dataset=synthetic", "dataset.samples=40", "dataset.limit=null", "dataset.classes=2")
    words = (*MODEL, *images, layers, "layers.types=[]")
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
        attention = archive.layers["blocks.1.attn@attention"][3]  # (head, query, key)
        assert entry.grid == (4, 4)
        to_patches = attention[:, 0, entry.prefix_tokens :].reshape(-1, *entry.grid)
        assert to_patches.shape == (3, 4, 4)
        np.testing.assert_allclose(to_patches.sum(axis=(1, 2)) + attention[:, 0, 0], 1, atol=1e-5)


@pytest.mark.slow
def test_training_on_tokens_that_know_their_patch(run: Run, tmp_path: Path) -> None:
    """A dictionary for tokens: four of each image, drawn once, each attributed to its patch."""
    images = ("dataset=synthetic", "dataset.samples=24", "dataset.limit=null")
    words = (*MODEL, *images, "layers.include=[blocks.1]", "layers.types=[]")
    assert run("extract", *words, f"archive={tmp_path}/all")[0] == 0
    drawn = ("reduction=positions", "reduction.count=4", f"archive={tmp_path}/drawn")
    code, _, err = run("extract", *words, *drawn)
    assert code == 0, err
    with Archive.open(tmp_path / "all") as archive:
        entry = archive.layers["blocks.1"].entry
        patches = archive.layers["blocks.1"][:][
            :, entry.prefix_tokens :
        ]  # (sample, patch, channel)
    torch.manual_seed(0)
    dictionary = torch.nn.Sequential(
        torch.nn.Linear(24, 64), torch.nn.ReLU(), torch.nn.Linear(64, 24)
    )
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=0.01)
    loader = ActivationLoader(tmp_path / "drawn", "blocks.1", batch_size=6, seed=1)
    losses, seen = [], set()
    for _ in range(30):
        for batch in loader:
            tokens, places = batch.activations["blocks.1"], batch.positions["blocks.1"]
            flat = tokens.reshape(-1, 24)
            rows = batch.rows.repeat_interleave(len(flat) // len(batch.rows))
            at = places.reshape(-1)
            np.testing.assert_allclose(flat.numpy(), patches[rows.numpy(), at.numpy()], atol=1e-5)
            seen |= set(zip(rows.tolist(), at.tolist(), strict=True))
            loss = (dictionary(flat) - flat).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert len(seen) == 24 * 4  # every token that was kept, and no other
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
