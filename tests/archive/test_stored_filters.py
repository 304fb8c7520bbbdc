"""Filters are those of the convolutions that see the image, in execution order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.models.base import ModelBundle
from pipeline.models.timm import TimmModel
from pipeline.models.tiny import TinyModel
from pipeline.models.transforms import Transform
from tests.conftest import tiny_extraction


def test_filters_are_those_that_see_the_image_in_execution_order(tmp_path: Path) -> None:
    model = TimmModel(name="efficientnet_b0", weights=None, arguments={})
    extract(tiny_extraction(
        tmp_path / "a", model=model, layers=LayerSelector(include=("conv_stem",)),
        dataset=Synthetic(samples=1, height=64, width=64),
    ))  # fmt: skip
    with Archive.open(tmp_path / "a") as archive:
        assert {name: w.shape for name, w in archive.filters.items()} == {
            "conv_stem": (32, 3, 3, 3)
        }


def test_several_convolutions_on_the_image_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import nn

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.Conv2d(3, 5, 3, padding=1)
            self.early = nn.Conv2d(3, 3, 5, padding=2)
            self.colour = nn.Conv2d(3, 4, 1)  # of what `early` returns: sees no image

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            late = self.late(x)
            return self.colour(self.early(x)) + late[:, :4]

    monkeypatch.setattr(
        TinyModel, "build",
        lambda _s, seed: ModelBundle(module=Two(), transform=Transform(resize=(16,), crop=(16,))),
    )  # fmt: skip
    extract(tiny_extraction(tmp_path / "a", layers=LayerSelector(include=("late",))))
    with Archive.open(tmp_path / "a") as archive:
        assert list(archive.filters) == ["late", "early"]
