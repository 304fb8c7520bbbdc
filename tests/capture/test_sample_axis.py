"""Two batch sizes tell the axis of the samples; the stored row is the right sample's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import ConfigError, LayerError
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.extraction.reductions import Reduction
from pipeline.extraction.reductions.base import NoReduction
from pipeline.extraction.reductions.pooling import SpatialMean
from pipeline.extraction.settings import Extraction
from tests.helpers.given_modules import extraction


class Sequences(nn.Module):
    """Recurrent and sequence-first layers over the rows of an image, as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(24, 6, num_layers=2)
        self.lstm = nn.LSTM(24, 6, num_layers=3, bidirectional=True, batch_first=True)
        self.attention = nn.MultiheadAttention(24, 2)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(24, 2, 24, dropout=0), 2, enable_nested_tensor=False
        )
        self.channels_before_samples = nn.Identity()
        self.scores = nn.Linear(24, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.permute(2, 0, 1, 3).flatten(2)  # (token, sample, channel)
        self.gru(rows)
        self.lstm(rows.transpose(0, 1))
        self.attention(rows, rows, rows)
        self.channels_before_samples(rows.mean(0).T)
        encoded: torch.Tensor = self.scores(self.encoder(rows))
        return encoded.mean(0)


# Layer → position of the axis of samples in what torch returns, and the axes that are stored.
WHERE = {
    "gru[0]": (1, ("token", "channel")),
    "gru[1]": (1, ("token", "channel")),  # h_n: (layer, sample, channel)
    "lstm[0]": (0, ("token", "channel")),
    "lstm[1.0]": (1, ("token", "channel")),
    "lstm[1.1]": (1, ("token", "channel")),
    "attention[0]": (1, ("token", "channel")),
    "attention[1]": (0, ("head", "query", "key")),  # the mean over heads
    "encoder.layers.0": (1, ("token", "channel")),
    "encoder.layers.1.linear1": (1, ("token", "channel")),
    "encoder": (1, ("token", "channel")),
    "channels_before_samples": (1, ("channel",)),
    "scores": (1, ("token", "channel")),
}


def test_the_stored_row_is_the_right_samples(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Sequences().eval()
    extract(extraction(tmp_path / "a", module, *WHERE))
    seen: dict[str, torch.Tensor] = {}
    for name in WHERE:  # hooks of our own: nothing of the code under test
        layer, _, key = name.removesuffix("]").partition("[")

        def keep(_m: object, _a: object, out: object, name: str = name, key: str = key) -> None:
            for part in key.split(".") if key else ():
                out = out[int(part)]
            seen[name] = out.clone()

        module.get_submodule(layer).register_forward_hook(keep)
    with Archive.open(tmp_path / "a") as archive:
        assert len(archive.layers) == len(WHERE)
        for row in range(5):
            pixels = torch.from_numpy(archive.image(row).transpose(2, 0, 1).copy())
            with torch.inference_mode():
                module((pixels[None] / 255 - 0.5) / 0.5)
            for name, (axis, names) in WHERE.items():
                layer = archive.layers[name]
                assert layer.axes == ("sample", *names)
                expected = seen[name].select(axis, 0).numpy()
                if "head" in names:
                    expected = expected[None]
                np.testing.assert_allclose(layer[row], expected, atol=1e-5, err_msg=name)


class Wrong(nn.Module):
    """Layers whose rows are not the samples."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("constant", "two", "windows", "tokens", "heads", "squared", "squeezed"):
            self.add_module(name, nn.Identity())
        self.one_by_one = nn.Linear(4, 4)
        self.right = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1)[:, :64]
        self.constant(torch.ones(2, 4) * x.mean())
        self.two(x[:2])
        self.windows(x.reshape(len(x) * 4, 4, 4))
        self.tokens(x.reshape(-1, 4))
        self.heads(torch.einsum("sah,sbh->shab", *2 * [x.reshape(-1, 4, 16)]).flatten(0, 1))
        self.squared(x @ x.T)
        self.squeezed(x.reshape(-1, 1, 64, 1).squeeze())
        for sample in x:
            self.one_by_one(sample[None, :4])
        scores: torch.Tensor = self.right(x)
        return scores


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        ("constant", r"\(2, 4\) for any number of images: no row per sample"),
        ("two", r"\(2, 64\) for 3 images and \(1, 64\) for one: no row per sample"),
        ("windows", r"\(12, 4, 4\) for 3 images and \(4, 4, 4\) for one: no row per sample"),
        ("tokens", r"\(48, 4\) for 3 images and \(16, 4\) for one: no row per sample"),
        ("heads", r"\(48, 4, 4\) for 3 images and \(16, 4, 4\) for one: no row per sample"),
        ("squared", r"\(3, 3\) for 3 images and \(1, 1\) for one: no row per sample"),
        ("squeezed", r"number of its axes depends on the batch \(`squeeze`\?\)"),
        ("one_by_one:0", r"\(1, 4\) for any number of images"),
        ("one_by_one:1", r"its calls depend on the batch"),
    ],
)
def test_rows_that_are_no_samples_end_before_anything_is_written(
    tmp_path: Path, layer: str, why: str
) -> None:
    with pytest.raises(LayerError, match=why) as caught:
        extract(extraction(tmp_path / "a", Wrong(), layer))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_globs_leave_them_out(tmp_path: Path) -> None:
    extract(extraction(tmp_path / "a", Wrong(), "*"))
    with Archive.open(tmp_path / "a") as archive:
        assert list(archive.layers) == ["right"]


class FirstThree(nn.Module):
    """Returns at most as many rows as the dummy batch has."""

    def __init__(self) -> None:
        super().__init__()
        self.few = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.few(images.mean((2, 3))[:3])
        return images


def test_rows_are_counted_in_every_batch(tmp_path: Path) -> None:
    config = extraction(tmp_path / "a", FirstThree(), "few")
    larger = Extraction(**{**vars(config), "loader": Loader(batch_size=5, num_workers=0)})
    with pytest.raises(LayerError, match="few returned 3 rows for 5 images"):
        extract(larger)


class SamplesLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        turned: torch.Tensor = self.turned(images.permute(1, 2, 3, 0))
        return turned


def test_what_keeps_the_samples_elsewhere_can_be_declared(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match=r"keeps the samples on axis 3.*channels_first or"):
        extract(extraction(tmp_path / "a", SamplesLast(), "turned"))
    with pytest.raises(ConfigError, match="tokens has 2 axes"):
        extract(extraction(tmp_path / "a", SamplesLast(), "turned", axes={"turned": "tokens"}))
    declared = {"turned": "channels_first"}
    extract(extraction(tmp_path / "a", SamplesLast(), "turned", axes=declared))
    with Archive.open(tmp_path / "a") as archive:
        for row in range(5):
            expected = (archive.image(row).transpose(2, 0, 1) / 255 - 0.5) / 0.5
            np.testing.assert_allclose(archive.layers["turned"][row], expected, atol=1e-6)


class Rating(nn.Module):
    """One number per image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rating: torch.Tensor = self.head(images.mean((2, 3))).squeeze(1)
        return rating


@pytest.mark.parametrize("reduction", [NoReduction(), SpatialMean()])
def test_one_number_per_image_is_one_channel(tmp_path: Path, reduction: Reduction) -> None:
    module = Rating()
    config = replace(extraction(tmp_path / "a", module, "head", "output"), reduction=reduction)
    extract(config)
    with Archive.open(tmp_path / "a") as archive:
        for row in range(5):
            mean = (archive.image(row).mean((0, 1)) / 255 - 0.5) / 0.5
            expected = module.head.weight.detach().numpy() @ mean + module.head.bias.item()
            for name in ("head", "output"):
                assert archive.layers[name].axes == ("sample", "channel")
                np.testing.assert_allclose(archive.layers[name][row], expected, atol=1e-6)
