"""Measurements that a GPU computes while the host goes on: that path, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import LayerError
from pipeline.extraction import measurements, rounding, statistics
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Precision, Storage
from pipeline.models.transforms import TransformOverride
from tests.helpers.given_modules import Given
from tests.helpers.replicated import extraction


@pytest.fixture
def deferred(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Take the path of a GPU; return the devices that it was taken for."""
    used: list[torch.device] = []
    monkeypatch.setattr(measurements, "_deferred", lambda values: not used.append(values.device))
    for module in (statistics, rounding):
        monkeypatch.setattr(module, "triton_works", lambda _device: False)
    return used


class Spikes(nn.Module):
    """Values far from zero, zeros, and a few that are not finite."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.relu() + torch.tensor([0, 100, 0])[:, None, None]
        y[:, 2, 3, 4] = torch.nan
        y[:, 2, :, 5] = torch.inf
        return y


@pytest.mark.parametrize("dtype", get_args(Precision))
def test_statistics_and_rounding_are_those_of_the_cpu(
    tmp_path: Path, deferred: list[torch.device], monkeypatch: pytest.MonkeyPatch, dtype: Precision
) -> None:
    module, storage = nn.Sequential(nn.Conv2d(3, 3, 3), Spikes()).eval(), Storage(dtype=dtype)
    extract(extraction(module, tmp_path / "gpu", storage=storage))
    assert len(deferred) >= 2 * 12
    monkeypatch.undo()
    extract(extraction(module, tmp_path / "cpu", storage=storage))
    with Archive.open(tmp_path / "gpu") as gpu, Archive.open(tmp_path / "cpu") as cpu:
        for name, layer in cpu.layers.items():
            np.testing.assert_array_equal(gpu.layers[name][:], layer[:])
            assert gpu.layers[name].rounding == layer.rounding
            for figure, values in layer.statistics.items():
                found = gpu.layers[name].statistics[figure]
                np.testing.assert_allclose(found, values, rtol=2e-6, atol=1e-7, err_msg=figure)


@pytest.mark.parametrize(
    ("factor", "changes", "message"),
    [
        (torch.nan, {"on_nonfinite": "raise"}, "1 returned 588 NaN or infinite values"),
        (1e6, {"storage": Storage(dtype="float16")}, r"1 reaches .*, but float16 ends"),
    ],
)
def test_values_that_may_not_be_end_the_extraction(
    tmp_path: Path, deferred: list[torch.device], factor: float, changes: dict[str, object],
    message: str,
) -> None:  # fmt: skip
    class Times(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu() * factor + 0 * x

    module = nn.Sequential(nn.Conv2d(3, 3, 3), Times()).eval()
    only = LayerSelector(include=("1",))
    with pytest.raises(LayerError, match=f"(?s){message}"):
        extract(extraction(module, tmp_path / "a", layers=only, **changes))
    assert deferred


class Tokens(nn.Module):
    """Tokens of a grid of 4 × 4 after a class token, which alone is large or not finite."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 5, 4, stride=4)
        self.tokens = nn.Identity()
        self.first = first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).mT
        first = torch.full_like(tokens[:, :1], self.first)
        out: torch.Tensor = self.tokens(torch.cat([first, tokens], dim=1))
        return out.mean(1)


def test_prefix_tokens_are_checked_too(tmp_path: Path, deferred: list[torch.device]) -> None:
    def made(name: str, first: float, **changes: object) -> Path:
        path = tmp_path / name
        module, layers = Tokens(first).eval(), LayerSelector(include=("tokens",))
        small = TransformOverride(resize=(16, 16))
        model = Given(module, transform=small, prefix_tokens=1)
        extract(extraction(module, path, model=model, layers=layers, **changes))
        return path

    half = Storage(dtype="float16")
    with pytest.raises(LayerError, match="tokens reaches 1e"):
        made("large", 1e6, storage=half)
    with pytest.raises(LayerError, match="tokens returned 5 NaN or infinite"):
        made("infinite", torch.inf, on_nonfinite="raise")
    with Archive.open(made("good", 1e4)) as archive:
        tokens = archive.layers["tokens"]
        expected = tokens[:][:, 1:].astype(float)
        np.testing.assert_allclose(tokens.statistics["std"], expected.std(axis=(0, 1)), rtol=1e-6)
        assert tokens.statistics["max"].max() < 100
    assert deferred
