"""A grid is claimed only where patches are known to be in their places; class tokens stay out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.archive.reading.archive import Archive
from pipeline.capture.axes import Tokens
from pipeline.capture.selector import LayerSelector
from pipeline.extraction.extract import extract
from pipeline.extraction.reductions.pooling import SpatialMean
from pipeline.extraction.settings import Extraction
from tests.helpers.given_modules import extraction
from tests.helpers.small_selection import names, selection


class Pruned(nn.Module):
    """A vision transformer over 8×8 patches that keeps, merges or skips tokens on the way."""

    def __init__(self, drop: str, *, conv: bool = True) -> None:
        super().__init__()
        self.drop, self.conv = drop, conv
        self.embed = nn.Conv2d(3, 6, 1) if conv else nn.Linear(3, 6)
        self.cls_token = nn.Parameter(torch.ones(1, 1, 6))
        self.first = nn.LayerNorm(6)
        self.second = nn.LayerNorm(6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images if self.conv else images.flatten(2).transpose(1, 2)
        patches = self.embed(x)
        patches = patches.flatten(2).transpose(1, 2) if self.conv else patches
        x = self.first(torch.cat([self.cls_token.expand(len(x), -1, -1), patches], 1))
        scores = x[:, 1:].sum(-1)
        if self.drop == "keep":  # DynamicViT: the 36 highest of 64
            kept = scores.topk(36, 1).indices[..., None].expand(-1, -1, 6)
            x = torch.cat([x[:, :1], x[:, 1:].gather(1, kept)], 1)
        elif self.drop == "merge":  # ToMe: pairs become one; as many tokens as there are patches
            x = torch.cat([x[:, :1], (x[:, 1:2] + x[:, 2:3]) / 2, x[:, 3:]], 1)
        elif self.drop == "stride":
            x = torch.cat([x[:, :1], x[:, 1::4]], 1)
        elif self.drop == "odd":
            x = x[:, :50]
        out: torch.Tensor = self.second(x)
        return out[:, 0]


@pytest.mark.parametrize("conv", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("drop", "grid"),
    [("nothing", (8, 8)), ("keep", None), ("merge", None), ("stride", None), ("odd", None)],
)
def test_what_is_left_of_the_patches_is_no_grid(
    tmp_path: Path, drop: str, grid: tuple[int, int] | None, conv: bool
) -> None:
    torch.manual_seed(1)
    module = Pruned(drop, conv=conv).eval()
    config = extraction(tmp_path / "a", module, "first", "second")
    extract(config)
    extract(Extraction(**{**vars(config), "archive": f"{tmp_path}/m", "reduction": SpatialMean()}))
    with Archive.open(tmp_path / "a") as archive, Archive.open(tmp_path / "m") as means:
        assert archive.layers["first"].entry.grid == (8, 8)
        entry = archive.layers["second"].entry
        assert (entry.grid, entry.prefix_tokens) == (grid, 1)
        values = archive.layers["second"][:]
        np.testing.assert_allclose(means.layers["second"][:], values[:, 1:].mean(1), atol=1e-6)


@pytest.mark.parametrize("at", [0, 32, 64])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_class_token_that_is_not_the_first_is_no_prefix(at: int, batch_first: bool) -> None:
    """As in Vision Mamba, whose class token is in the middle."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 1)
            self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
            self.norm = nn.LayerNorm(8)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.embed(images).flatten(2).transpose(1, 2)
            x = torch.cat([x[:, :at], self.cls_token.expand(len(x), -1, -1), x[:, at:]], 1)
            out: torch.Tensor = self.norm(self.block(x if batch_first else x.transpose(0, 1)))
            return out

    found = selection(Joined(), size=8, tokens=Tokens(prefix=1))
    (layer,) = found.select(LayerSelector(include=("norm",)))
    expected = ((8, 8), 1, True) if at == 0 else (None, 0, False)
    assert (layer.axes.grid, layer.axes.prefix_tokens, layer.axes.class_token) == expected


def test_patches_alone_before_the_class_token_joins_them_are_the_grid() -> None:
    layers = selection(Pruned("merge", conv=False), size=8, tokens=Tokens(prefix=1)).select(
        LayerSelector(include=("embed", "first", "second"))
    )
    assert [(layer.axes.grid, layer.axes.prefix_tokens) for layer in layers] == [
        ((8, 8), 0), ((8, 8), 1), (None, 1),
    ]  # fmt: skip


class Flat(nn.Module):
    """A convolution whose map becomes tokens, as in CvT's attention and in VOLO's."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(6, 6, 1, stride=stride)
        self.turn = Turn()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.turn(self.convolution(maps))
        return tokens


class Turn(nn.Module):
    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(2).transpose(1, 2)


class Split(nn.Module):
    """Takes the class token off its 8×8 patches and puts it back before them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 1)
        self.unfold = nn.Unfold((3, 2), stride=(1, 4), padding=(0, 1), dilation=2)
        self.early = nn.LayerNorm(6)
        self.cls_token = nn.Parameter(torch.ones(1, 1, 6))
        self.joined = nn.LayerNorm(6)
        self.query, self.key = Flat(1), Flat(2)
        self.again = nn.LayerNorm(6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.embed(images)
        unfolded = self.unfold(maps).mean()
        self.early(maps.flatten(2).transpose(1, 2)[:, :20])
        patches = maps.flatten(2).transpose(1, 2)
        x = self.joined(torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1))
        maps = x[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
        query, key = self.query(maps), self.key(maps)
        again: torch.Tensor = self.again(torch.cat([x[:, :1], query, key], 1))
        return again[:, 0] + unfolded


def test_a_class_token_is_not_seen_where_it_is_not() -> None:
    module = selection(Split(), size=8, tokens=Tokens(prefix=1))
    layers = module.select(LayerSelector(include=("re:.*",)))
    assert {x.name: (x.axes.names[0], x.axes.grid, x.axes.prefix_tokens) for x in layers
            if "token" in x.axes.names} == {
        "unfold": ("channel", (4, 2), 0),
        "early": ("token", None, 0),
        "joined": ("token", (8, 8), 1),
        "query": ("token", (8, 8), 0),
        "query.turn": ("token", (8, 8), 0),
        "key": ("token", (4, 4), 0),
        "key.turn": ("token", (4, 4), 0),
        "again": ("token", None, 1),
    }  # fmt: skip


class Dense(nn.Module):
    """Classes for every patch behind the class token, as VOLO's auxiliary head has them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 1)
        self.cls_token = nn.Parameter(torch.ones(1, 1, 6))
        self.joined = nn.LayerNorm(6)
        self.merged = nn.LayerNorm(6)
        self.dense = nn.Linear(6, 2)
        self.norm = nn.LayerNorm(2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        x = self.joined(torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1))
        self.merged(x[:, :-1])
        dense: torch.Tensor = self.norm(self.dense(x[:, 1:]))
        return dense


def test_patches_behind_a_class_token_that_is_sliced_off_are_the_grid(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = selection(Dense(), size=8, tokens=Tokens(prefix=1))
    layers = module.select(LayerSelector(include=("joined", "dense", "norm")))
    assert [(layer.axes.grid, layer.axes.prefix_tokens) for layer in layers] == [
        ((8, 8), 1), ((8, 8), 0), ((8, 8), 0),
    ]  # fmt: skip
    assert not caplog.records
    (merged,) = module.select(LayerSelector(include=("merged",)))
    assert (merged.axes.grid, merged.axes.prefix_tokens) == (None, 1)


class Elements(nn.Module):
    """Blocks that return pairs, as attention layers do, each called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"attn": Twofold()}) for _ in range(2))
        self.layers10 = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in (*self.layers, *self.layers):
            x = block["attn"](x)[0]
        y: torch.Tensor = self.layers10(x)
        return y


class Twofold(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x - 1


BOTH = ["layers.0.attn", "layers.1.attn"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layers.*.attn[0]", ["layers.0.attn:0[0]", "layers.1.attn:0[0]",
                              "layers.0.attn:1[0]", "layers.1.attn:1[0]"]),
        ("layers.*.attn:1[1]", ["layers.0.attn:1[1]", "layers.1.attn:1[1]"]),
        ("*attn:in:0", [f"{name}:in:0" for name in BOTH]),
        ("re:layers\\.\\d\\.attn:0[1]", [f"{name}:0[1]" for name in BOTH]),
        ("re:.*:in:1", [f"{name}:in:1" for name in BOTH]),
        ("re:layers1[0-9]", ["layers10"]),
        ("*layers1[0-9]", ["layers10"]),
        ("l?yers*[0]", ["layers.0.attn:0[0]", "layers.1.attn:0[0]",
                        "layers.0.attn:1[0]", "layers.1.attn:1[0]"]),
    ],
)  # fmt: skip
def test_what_follows_a_pattern_applies_to_every_match(pattern: str, expected: list[str]) -> None:
    assert names(selection(Elements()).select(LayerSelector(include=(pattern,)))) == expected
