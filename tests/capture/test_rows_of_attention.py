"""Attention weights whose rows are no samples, and heads that are no blocks of a rollout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import LayerError
from pipeline.extraction.extract import extract
from tests.helpers.given_modules import extraction


class Heads(nn.Module):
    """Two heads over four tokens: one after the other, or joined with the samples."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.patches, self.query = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 6)
        self.order = order

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT
        queries, values = self.query(tokens).split(3, 2), tokens.split(3, 2)
        if self.order == "loop":
            joined = [(q @ v.mT).softmax(-1) @ v for q, v in zip(queries, values, strict=True)]
        else:
            axis = 0 if self.order == "heads first" else 1
            q, v = (torch.stack(x, axis).flatten(0, 1) for x in (queries, values))
            weighed = torch.bmm(torch.bmm(q, v.mT).softmax(-1), v)
            weighed = weighed.unflatten(0, (2, -1) if axis == 0 else (-1, 2))
            joined = [*weighed.unbind(axis)]
        return torch.cat(joined, 2).mean(1)


class Masked(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(images, training=True)


def test_heads_before_samples_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Heads("heads first").eval()
    for name in ("output@attention", "output@rollout"):
        with pytest.raises(LayerError, match=r"changes with the other images .*heads .* samples"):
            extract(extraction(tmp_path / "a", module, name))
    module.order = "samples first"
    extract(extraction(tmp_path / "a", module, "output@attention", "output@rollout"))
    with Archive.open(tmp_path / "a") as archive:
        weights, rollout = (archive.layers[f"output@{name}"] for name in ("attention", "rollout"))
        for row in range(5):
            pixels = torch.from_numpy(archive.image(row).transpose(2, 0, 1).copy())[None]
            with torch.no_grad():
                tokens = module.patches((pixels / 255 - 0.5) / 0.5).flatten(2).mT
                q, k = module.query(tokens).unflatten(2, (2, 3)), tokens.unflatten(2, (2, 3))
                expected = torch.einsum("bihc,bjhc->bhij", q, k).softmax(-1)[0]
            torch.testing.assert_close(torch.from_numpy(weights[row]), expected)
            block = F.normalize(expected.mean(0) + torch.eye(4), p=1, dim=-1)
            torch.testing.assert_close(torch.from_numpy(rollout[row])[0], block)


def test_attention_over_tokens_that_are_masked_at_random_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The random numbers change it, as may other images of the batch."""
    module = nn.Sequential(Masked(), Heads("samples first")).eval()
    extract(extraction(tmp_path / "a", module, "1@attention"))
    assert "the model draws random numbers" in caplog.text
    with Archive.open(tmp_path / "a") as archive:
        assert archive.layers["1@attention"].shape == (5, 2, 4, 4)


def test_heads_that_are_computed_one_by_one_are_no_blocks(tmp_path: Path) -> None:
    module = Heads("loop").eval()
    with pytest.raises(LayerError, match="output@rollout needs one attention for each call"):
        extract(extraction(tmp_path / "a", module, "output@rollout"))
