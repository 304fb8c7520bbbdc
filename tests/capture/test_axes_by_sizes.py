"""Axes that follow from the sizes of other layers: token mixing, flattened maps, maps of depth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.archive.reading.archive import Archive
from pipeline.capture.axes import ATTENTION, CHANNELS_FIRST, CHANNELS_LAST, TOKENS, TOKENS_LAST
from pipeline.capture.axis_inference import ModelSizes, axes_of
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import LayerError
from pipeline.extraction.extract import extract
from pipeline.extraction.listing import list_layers
from pipeline.models.transforms import TransformOverride
from tests.helpers.given_modules import extraction
from tests.helpers.small_selection import selection


class TokenMixer(nn.Module):
    """An MLP over the tokens, one over the channels, and a map of depth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 2, stride=2)
        self.flat = nn.Flatten(2)
        self.norm = nn.LayerNorm(10)
        self.mix = nn.Sequential(nn.LazyLinear(5), nn.GELU(), nn.LazyLinear(16))
        self.channels = nn.Linear(10, 7)
        self.queries = nn.Linear(7, 7)
        self.depth = nn.Sigmoid()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.stem(images)
        tokens = self.norm(self.flat(maps).transpose(1, 2))
        mixed = self.channels(tokens + self.mix(tokens.transpose(1, 2)).transpose(1, 2))
        self.queries(mixed[:, :3])
        depth: torch.Tensor = self.depth(maps[:, 0])
        return depth


AXES = {
    "stem": CHANNELS_FIRST,
    "flat": TOKENS_LAST,
    "norm": TOKENS,
    "mix.0": TOKENS_LAST,
    "mix.1": TOKENS_LAST,
    "mix.2": TOKENS_LAST,
    "mix": TOKENS_LAST,
    "channels": TOKENS,
    "queries": TOKENS,
    "depth": CHANNELS_FIRST,
    "output": CHANNELS_FIRST,
}


def test_the_axis_of_the_channels_follows_from_other_layers() -> None:
    module = TokenMixer()
    module(torch.zeros(1, 3, 8, 8))  # lazy layers
    layers = selection(module, 8).select(LayerSelector(include=("*", "output")))
    assert {layer.name: layer.axes.names for layer in layers} == AXES


def test_a_map_without_channels_is_stored_as_one_channel(tmp_path: Path) -> None:
    module = TokenMixer()
    module(torch.zeros(1, 3, 8, 8))
    size = TransformOverride(resize=(8, 8), crop=(8, 8))
    config = extraction(tmp_path / "a", module, "depth", "output", transform=size)
    listing = json.loads(list_layers(config, everything=False, functions=False, as_json=True))
    for listed in listing["layers"]:
        assert (listed["axes"], listed["shape"]) == ([*CHANNELS_FIRST], [3, 1, 4, 4])
    extract(config)
    with Archive.open(tmp_path / "a") as archive:
        for row in range(5):
            pixels = torch.from_numpy(archive.image(row).transpose(2, 0, 1).copy())
            maps = F.conv2d((pixels[None] / 255 - 0.5) / 0.5, module.stem.weight[:1],
                            module.stem.bias[:1], stride=2)  # fmt: skip
            expected = maps.sigmoid().detach()[0].numpy()
            for name in ("depth", "output"):
                layer = archive.layers[name]
                assert layer.axes == ("sample", "channel", "height", "width")
                np.testing.assert_allclose(layer[row], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "tokens", "readable"),
    [
        ((64, 12, 16), {12}, True),  # attention needs keys, too: no layer has 16 tokens
        ((64, 12, 16), {16}, True),
        ((64, 12, 16), {12, 16}, False),
        ((64, 12, 12), {12}, False),
    ],
)
def test_maps_beside_tokens(shape: tuple[int, int, int], tokens: set[int], readable: bool) -> None:
    sizes = ModelSizes(
        image=(96, 128), token_counts=frozenset(tokens), map_sizes=frozenset({shape[1:]})
    )
    found = axes_of(shape, module=nn.ReLU(), sizes=sizes)
    assert found == CHANNELS_FIRST if readable else "may be attention weights" in found


class Heads(nn.Module):
    """A norm of every head's tokens, and maps of classes named as layers of channels-last maps."""

    class Embedding(nn.Sequential):
        pass

    class LayerNormAct2d(nn.LayerNorm):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return super().forward(maps.movedim(1, -1)).movedim(-1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.patches = self.Embedding(nn.Conv2d(3, 12, 4, stride=4))
        self.norm = self.LayerNormAct2d(12)
        self.last = nn.LayerNorm(12)
        self.q_norm = nn.LayerNorm(6)
        self.act = nn.ReLU()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.norm(self.patches(images))
        self.last(maps.movedim(1, -1))
        heads = maps.flatten(2).unflatten(1, (2, 6)).transpose(2, 3)
        acted: torch.Tensor = self.act(self.q_norm(heads))
        return acted


def test_tokens_of_heads_are_no_maps() -> None:
    layers = selection(Heads(), 32)
    selected = layers.select(LayerSelector(include=("*",)))
    first = dict.fromkeys(("patches", "patches.0", "norm"), CHANNELS_FIRST)
    axes = {layer.name: layer.axes.names for layer in selected}
    assert axes == first | {"last": CHANNELS_LAST}
    for name in ("q_norm", "act"):
        with pytest.raises(LayerError, match="per sample, which may be"):
            layers.select(LayerSelector(include=(name,)))


def test_a_size_of_flattened_maps_is_no_side_of_a_map() -> None:
    sizes = ModelSizes(image=(56, 56), map_sizes=frozenset({(14, 14)}),
                       flattened=frozenset({(8, 196), (8, 1)}))  # fmt: skip
    assert "may be attention" in axes_of((8, 196, 16), module=nn.ReLU(), sizes=sizes)
    for shape in ((8, 196, 196), (8, 1, 7), (8, 14, 14), (8, 7, 9)):
        assert axes_of(shape, module=nn.ReLU(), sizes=sizes) == CHANNELS_FIRST


@pytest.mark.parametrize("module", [nn.Softmax(-1), nn.Dropout()])
def test_a_softmax_of_all_tokens_by_all_tokens_is_attention(module: nn.Module) -> None:
    sizes = ModelSizes(image=(64, 64), token_counts=frozenset({17}), map_sizes=frozenset({(4, 4)}))
    assert axes_of((3, 17, 17), module=module, sizes=sizes) == ATTENTION
    sizes = replace(sizes, map_sizes=frozenset({(17, 17)}))
    assert "may be attention weights or maps" in axes_of((3, 17, 17), module=module, sizes=sizes)


@pytest.mark.parametrize("module", [nn.Softmax(-1), nn.Dropout()])
def test_attention_of_channels_by_channels_is_no_map_of_its_size(module: nn.Module) -> None:
    """XCiT at 256 pixels: 4 heads of 32 channels, on a grid of 32 by 32 tokens."""
    sizes = ModelSizes(
        image=(256, 256), token_counts=frozenset({1024, 1025}), widths=frozenset({128}),
        map_sizes=frozenset({(32, 32)}), flattened=frozenset({(128, 1024)}),
    )  # fmt: skip
    assert "may be attention weights or maps" in axes_of((4, 32, 32), module=module, sizes=sizes)
    assert axes_of((128, 32, 32), module=module, sizes=sizes) == CHANNELS_FIRST


class Gated(nn.Module):
    """Tokens, and a gate of one pixel for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.gate = nn.Sigmoid()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.norm(images.flatten(2).transpose(1, 2))
        gate: torch.Tensor = self.gate(images.mean((2, 3), keepdim=True))
        return images * gate


def test_one_pixel_of_a_model_with_tokens_is_a_map() -> None:
    (layer,) = selection(Gated(), 4).select(LayerSelector(include=("gate",)))
    assert layer.axes.names == CHANNELS_FIRST


def test_a_flattened_map_that_may_be_a_map_of_depth_is_not_guessed() -> None:
    sizes = ModelSizes(
        image=(8, 8), map_sizes=frozenset({(4, 4), (2, 2)}), flattened=frozenset({(4, 4)})
    )
    found = axes_of((4, 4), module=nn.Identity(), sizes=sizes)
    assert "declare it with model.axes={LAYER: channels_first or tokens_last}" in found


class Queries(nn.Module):
    """Queries as many as the coordinates of a box."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.boxes = nn.Linear(3, 4)
        self.position = nn.Linear(4, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(images.flatten(2).transpose(1, 2))
        position: torch.Tensor = self.position(self.boxes(tokens)[:, :4])
        return position


def test_queries_are_tokens_even_if_channels_are_as_many() -> None:
    layers = selection(Queries(), 4).select(LayerSelector(include=("*",)))
    assert {layer.axes.names for layer in layers} == {TOKENS}


@pytest.mark.parametrize(
    ("shape", "image", "maps", "tokens", "expected"),
    [
        # Only a permuted map has the map's size first.
        ((28, 28, 128), (224, 224), {(28, 28)}, set(), CHANNELS_LAST),
        ((28, 28, 128), (224, 224), {(28, 28)}, {784, 49}, CHANNELS_LAST),
        ((16, 24, 6), (64, 96), {(16, 24)}, set(), CHANNELS_LAST),
        ((28, 28, 28), (224, 224), {(28, 28)}, set(), CHANNELS_FIRST),
        ((14, 14, 7), (224, 224), {(14, 14), (14, 7)}, set(), CHANNELS_FIRST),
        ((14, 28, 28), (224, 224), {(14, 14)}, set(), CHANNELS_FIRST),
    ],
)
def test_permuted_maps_of_a_model_without_channels_last_layers(
    shape: tuple[int, int, int], image: tuple[int, int], maps: set[tuple[int, int]],
    tokens: set[int], expected: tuple[str, ...],
) -> None:  # fmt: skip
    sizes = ModelSizes(image=image, map_sizes=frozenset(maps), token_counts=frozenset(tokens))
    assert axes_of(shape, module=nn.Identity(), sizes=sizes) == expected


def test_channels_last_maps_as_high_as_there_are_tokens_in_a_window() -> None:
    sizes = ModelSizes(
        image=(256, 256), channels_last=True, map_sizes=frozenset({(64, 64)}),
        token_counts=frozenset({64, 4096}),
    )  # fmt: skip
    assert axes_of((64, 64, 96), module=nn.Identity(), sizes=sizes) == CHANNELS_LAST
    assert "may be attention" in axes_of((3, 64, 64), module=nn.Identity(), sizes=sizes)


class ConvMixer1d(nn.Module):
    """Convolutions and norms of one dimension whose channels are the tokens, or the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, stride=4)
        self.norm = nn.LayerNorm(12)
        self.mix = nn.Sequential(nn.Conv1d(16, 40, 1), nn.GELU(), nn.Conv1d(40, 16, 1))
        self.of_tokens = nn.BatchNorm1d(16)
        self.of_channels = nn.BatchNorm1d(12)
        self.widen = nn.Conv1d(12, 20, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.embed(images).flatten(2).transpose(1, 2))
        tokens = self.of_tokens(tokens + self.mix(tokens))
        wide: torch.Tensor = self.widen(self.of_channels(tokens.transpose(1, 2)))
        return wide


def test_layers_of_one_dimension_may_mix_tokens() -> None:
    layers = selection(ConvMixer1d(), 16).select(LayerSelector(include=("*",)))
    axes = {layer.name: layer.axes.names for layer in layers}
    last = dict.fromkeys(("of_channels", "widen"), TOKENS_LAST)
    first = dict.fromkeys(("norm", "mix.0", "mix.1", "mix.2", "mix", "of_tokens"), TOKENS)
    assert axes == {"embed": CHANNELS_FIRST} | first | last


class Hybrid(nn.Module):
    """Maps of 4×4, as high and wide as there are tokens of 2×2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.drop = nn.Conv2d(3, 8, 2, 2), nn.ReLU(), nn.Dropout()
        self.down, self.norm, self.heads = nn.Conv2d(8, 8, 2, 2), nn.LayerNorm(8), nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.act(self.stem(images))
        tokens: torch.Tensor = self.norm(self.down(self.drop(maps)).flatten(2).transpose(1, 2))
        self.heads((tokens @ tokens.transpose(1, 2)).unsqueeze(1).expand(-1, 2, -1, -1))
        return tokens


def test_maps_as_high_and_wide_as_there_are_tokens() -> None:
    layers = selection(Hybrid(), 8)
    act = layers.select(LayerSelector(include=("act", "act:in")))
    assert [layer.axes.names for layer in act] == [CHANNELS_FIRST] * 2
    for name in ("drop", "heads"):
        with pytest.raises(LayerError, match="may be attention weights or maps; declare"):
            layers.select(LayerSelector(include=(name,)))


class LinearAttention(nn.Module):
    """A network without layers of tokens; its attention is computed by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Conv2d(3, 48, 1), nn.Conv2d(16, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(images).flatten(2).unflatten(1, (3, 2, 8)).unbind(1)
        context = v @ k.relu().transpose(2, 3)  # (sample, head, channel, channel)
        mixed = torch.einsum("nhcd,nhdp->nhcp", context, q)
        scores = (q[:, 0].transpose(1, 2) @ k[:, 0]).softmax(-1)  # (sample, query, key)
        pooled = v[:, 0] @ scores.mT
        maps = F.pad(mixed.flatten(1, 2).unflatten(2, images.shape[2:]), (1, 1, 1, 1))
        out: torch.Tensor = self.proj(maps) + pooled.mean()
        return out


def test_products_of_function_calls_are_not_taken_for_maps() -> None:
    layers = selection(LinearAttention(), 8, functions=True)
    selected = layers.select(LayerSelector(include=("*@*",)))
    axes = {layer.name: layer.axes.names for layer in selected}
    maps = [name for name, names in axes.items() if names == CHANNELS_FIRST]
    assert maps == ["qkv@conv2d", "output@unflatten:1", "output@pad", "proj@conv2d", "output@add"]
    assert axes["output@matmul:1"] == axes["output@softmax"] == TOKENS  # queries
    for name in ("output@einsum", "output@matmul:0", "output@matmul:2"):
        with pytest.raises(LayerError, match=r"which may be .*; declare it with model\.axes"):
            layers.select(LayerSelector(include=(name,)))
