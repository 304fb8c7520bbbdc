"""Blocks mix tokens well: an autoencoder learns as much as from a full permutation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import ActivationLoader
from scripts.synthetic_archive import layer_of, write_archive

IMAGES, TOKENS, WIDTH, CLASSES, FEATURES, ACTIVE = 600, 49, 24, 20, 160, 6


def sorted_tokens() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return tokens of images that are sorted by class; each class has features of its own."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(4 * CLASSES + 20, WIDTH))
    labels = np.arange(IMAGES) * CLASSES // IMAGES
    tokens = 0.05 * random.normal(size=(IMAGES, TOKENS, WIDTH))
    for of_class in (4, 20):  # features of the class, and of all classes
        first = 4 * labels if of_class == 4 else np.full(IMAGES, 4 * CLASSES)
        for _ in range(2):
            feature = first[:, None] + random.integers(of_class, size=(IMAGES, TOKENS))
            tokens += random.gamma(2, 0.5, (IMAGES, TOKENS, 1)) * directions[feature]
    return tokens.astype(np.float32)


class Autoencoders(nn.Module):
    """Several top-k autoencoders: a single one's loss varies by 1 % with the order of its data."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.decoder = nn.Parameter(F.normalize(torch.randn(8, FEATURES, WIDTH), dim=-1))
        self.encoder = nn.Parameter(self.decoder.detach().mT.clone())
        self.bias = nn.Parameter(mean.repeat(8, 1, 1))

    def errors(self, x: Tensor) -> Tensor:
        """Return each one's mean squared error."""
        activations = ((x - self.bias) @ self.encoder).relu()
        values, features = activations.topk(ACTIVE)
        codes = torch.zeros_like(activations).scatter(2, features, values)
        errors: Tensor = (codes @ self.decoder + self.bias - x).square().mean((1, 2))
        return errors


@pytest.mark.slow
def test_an_autoencoder_learns_as_much_from_blocks_as_from_a_full_permutation(
    tmp_path: Path,
) -> None:
    """The reservoir holds two thirds of the images, in runs of six; each class has 30."""
    tokens = sorted_tokens()
    path = write_archive(
        tmp_path / "a", {"x": layer_of(tokens, grid=(7, 7))}, [f"{i:04}" for i in range(IMAGES)],
        shards=4,
    )  # fmt: skip
    everything = torch.from_numpy(tokens).flatten(0, 1)
    variance = float(everything.var(0, correction=0).mean())

    def unexplained(shuffle: str, seed: int, images: int | None = 32) -> float:
        torch.manual_seed(0)
        models = Autoencoders(everything.mean(0))
        optimizer = torch.optim.Adam(models.parameters(), 5e-3)
        loader = ActivationLoader(
            path, "x", 8, tokens="patch", shuffle=shuffle, seed=seed, images_per_batch=images,
            run_bytes=6 * tokens[0].nbytes, reservoir=50,
        )  # fmt: skip
        epochs = 8
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, epochs * len(loader))
        for _ in range(epochs):
            for batch in loader:
                optimizer.zero_grad()
                models.errors(batch.activations["x"]).sum().backward()
                optimizer.step()
                schedule.step()
        loader.close()
        with torch.no_grad():
            return float(models.errors(everything[::5]).mean()) / variance

    full = sum(unexplained("full", seed) for seed in range(2))
    blocks = sum(unexplained("blocks", seed) for seed in range(2))
    assert 2 * unexplained("none", 0, None) > 1.1 * full  # the order matters
    assert abs(blocks / full - 1) <= 0.01
