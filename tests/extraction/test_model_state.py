"""Models that keep values between forward passes: every batch starts from the loaded model."""

from __future__ import annotations

import collections
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.compare import compare
from pipeline.capture.selector import LayerSelector
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Loader
from tests.helpers.replicated import extraction, threads


class Membrane(nn.Module):
    """Adds its input to what is left of earlier ones, as spiking neurons do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.neuron = nn.ReLU()
        self.begin()

    def begin(self) -> None:
        self.charge: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        total = self.left() * 0.5 + self.conv(x)
        self.keep(total)
        return self.neuron(total)  # type: ignore[no-any-return]

    def left(self) -> Any:
        return self.charge

    def keep(self, total: Tensor) -> None:
        self.charge = total


class Buffer(Membrane):
    def begin(self) -> None:
        self.register_buffer("charge", torch.ones(1))


class InPlace(Membrane):
    def begin(self) -> None:
        self.register_buffer("charge", torch.ones(4, 1, 1))

    def keep(self, total: Tensor) -> None:
        self.charge += total.mean((0, 2, 3))[:, None, None]


class NumpyArray(InPlace):
    def begin(self) -> None:
        self.charge = np.ones((4, 1, 1), np.float32)

    def left(self) -> Any:
        return torch.from_numpy(self.charge.copy())

    def keep(self, total: Tensor) -> None:
        self.charge += total.mean((0, 2, 3)).numpy()[:, None, None]


class Absent(Membrane):
    def begin(self) -> None:
        pass

    def left(self) -> Any:
        return getattr(self, "charge", 0.0)


class InDict(Membrane):
    def begin(self) -> None:
        self.kept: dict[str, Any] = {"values": {"charge": 0.0}}

    def left(self) -> Any:
        return self.kept["values"]["charge"]

    def keep(self, total: Tensor) -> None:
        self.kept["values"]["charge"] = total


class InList(Membrane):
    def begin(self) -> None:
        self.kept: Any = [0.0]

    def left(self) -> Any:
        return self.kept[-1]

    def keep(self, total: Tensor) -> None:
        self.kept.append(total)


class InDeque(InList):
    def begin(self) -> None:
        self.kept = (collections.deque([0.0], maxlen=2),)

    def left(self) -> Any:
        return self.kept[0][-1]

    def keep(self, total: Tensor) -> None:
        self.kept[0].append(total)


class ByParameter(Membrane):
    """Keeps values by parameter, as optimizers do."""

    def begin(self) -> None:
        self.kept: dict[Any, Any] = {self.conv.weight: {"charge": 0.0}, self.conv.bias: {}}

    def left(self) -> Any:
        return self.kept[self.conv.weight]["charge"]

    def keep(self, total: Tensor) -> None:
        self.kept[self.conv.weight]["charge"] = total


class InObject(Membrane):
    def begin(self) -> None:
        self.kept = SimpleNamespace(charge=0.0)

    def left(self) -> Any:
        return self.kept.charge

    def keep(self, total: Tensor) -> None:
        self.kept.charge = total


class Steps(Membrane):
    """Counts forward passes."""

    def keep(self, total: Tensor) -> None:
        self.charge += 1


KINDS = [Membrane, Buffer, InPlace, NumpyArray, Absent, InDict, InList, InDeque, ByParameter,
         InObject, Steps]  # fmt: skip


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_earlier_images(
    kind: type[Membrane], count: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    state = model.state_dict()
    config = extraction(
        model, tmp_path, dataset=Synthetic(samples=7), loader=Loader(batch_size=1),
        layers=LayerSelector(include=("conv", "neuron")),
    )  # fmt: skip
    with threads(count):
        extract(config)
    transform = config.model.load().transform
    with Archive.open(tmp_path) as archive, torch.no_grad():
        for row in range(7):
            fresh = kind().eval()
            fresh.load_state_dict(state)
            image = torch.from_numpy(archive.image(row).transpose(2, 0, 1)[None])
            expected = fresh(transform.normalize(image))[0].numpy()
            np.testing.assert_allclose(archive.layers["neuron"][row], expected, atol=1e-5)


class BuiltByFirstPass(nn.Module):
    """Sizes its second layer by the first input that it gets, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc: Any = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(1)
        if self.fc is None:
            self.fc = nn.Linear(x.shape[1], 5)
        return self.fc(x)  # type: ignore[no-any-return]


def test_layers_built_by_the_first_pass_stay(tmp_path: Path) -> None:
    model = BuiltByFirstPass().eval()
    config = extraction(
        model, tmp_path, dataset=Synthetic(samples=3), loader=Loader(batch_size=1),
        layers=LayerSelector(include=("output",)),
    )  # fmt: skip
    with threads(1):
        extract(config)
    transform = config.model.load().transform
    with Archive.open(tmp_path) as archive, torch.no_grad():
        images = np.stack([archive.image(row).transpose(2, 0, 1) for row in range(3)])
        expected = model(transform.normalize(torch.from_numpy(images))).numpy()
        np.testing.assert_allclose(archive.layers["output"][:], expected, atol=1e-5)


def test_a_model_made_in_inference_mode(tmp_path: Path) -> None:
    with torch.inference_mode():
        inside = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval()
    outside = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval()
    outside.load_state_dict(inside.state_dict())
    for name, network in (("inside", inside), ("outside", outside)):
        with threads(2):
            extract(extraction(network, tmp_path / name))
    assert compare(tmp_path / "inside", tmp_path / "outside")["equal"]
