"""Layer selection and axes: what patterns mean, what each axis is, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.capture.axes import (
    ATTENTION,
    CHANNELS_FIRST,
    CHANNELS_LAST,
    TOKENS,
    TOKENS_LAST,
    VECTOR,
    Axes,
    Tokens,
)
from pipeline.capture.axis_inference import ModelSizes, axes_of, by_shape
from pipeline.capture.selector import LayerSelector
from pipeline.capture.token_grids import TokenGrids
from pipeline.common.errors import ConfigError, LayerError
from pipeline.extraction.reductions.per_layer import PerLayer, parse
from pipeline.extraction.reductions.pooling import AverageGrid, SpatialMax, SpatialMean
from pipeline.rendering.views import as_layer_view
from tests.helpers.small_selection import names, selection


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({"include": "block.conv"}, ["block.conv"]),
        ({"include": ["head", "block.conv"]}, ["block.conv", "head"]),
        ({"include": ["block.*"]}, ["block.conv", "block.act:0", "block.act:1"]),
        ({"include": ["*"], "types": ["Conv2d"]}, ["block.conv"]),
        ({"include": ["*"], "types": ["Conv2d", "Linear"]}, ["block.conv", "head"]),
        ({"include": ["re:block\\.(conv|act)"], "exclude": ["*.act"]}, ["block.conv"]),
        ({"include": ["block.act:1"]}, ["block.act:1"]),
        ({"include": ["block.act:in:0"]}, ["block.act:in:0"]),
        ({"include": ["pair[0]"]}, ["pair[0]"]),
        ({"include": ["pair:in"]}, ["pair:in"]),
        ({"include": ["block.same"]}, ["block.same"]),
        ({"include": ["re:[^.]+"]}, ["block", "pool", "head"]),
        ({"include": ["block.conv", "head"], "exclude": ["head"]}, ["block.conv"]),
        ({"include": ["block.conv", "head"], "exclude": ["block.same"]}, ["head"]),
        ({"include": ["block.act"], "exclude": ["block.act:1"]}, ["block.act:0"]),
        ({"include": ["pair[0]", "pair:in"], "exclude": ["*[0]"]}, ["pair:in"]),
        ({"include": ["penultimate"], "exclude": ["head"]}, ["head:in"]),
        ({"include": ["penultimate", "pool"], "exclude": ["penultimate"]}, ["pool"]),
        ({"include": ["*:in"], "exclude": ["block*", "pool"]}, ["pair:in", "head:in"]),
    ],
)
def test_selectors(selector: dict[str, object], expected: list[str]) -> None:
    assert names(selection().select(LayerSelector(**selector))) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ({"include": "block.convv"}, "did you mean block.conv?"),
        ({"include": "blok.*"}, "'blok.*' matches no layer; did you mean block"),
        ({"include": "unused"}, "unused is never reached"),
        ({"include": "block.act:2"}, "is called 2 times; calls are numbered from 0"),
        ({"include": "pair"}, "is several tensors; use pair[0] or pair[1]"),
        ({"include": "pair[2]"}, "use pair[0] or pair[1]"),
        ({"include": "pair[1]"}, "is int64, not floating point"),
        ({"include": "head[0]"}, "it has no [0]"),
        ({"types": ["Conv3d"]}, "no layer of type 'Conv3d'; did you mean Conv2d?"),
        ({"exclude": ["*"]}, "together leave no layer"),
        ({"include": ["head"], "exclude": ["head"]}, "together leave no layer"),
        ({"include": ["block.act"], "exclude": ["block.act:0", "block.act:1"]}, "leave no layer"),
        ({"exclude": ["haed"]}, "layers.exclude: no layer 'haed'; did you mean head?"),
        ({"include": "head", "aliases": {"haed": "x"}}, "did you mean head?"),
        (
            {"include": ["block.*"], "aliases": {"block.act:0": "block.conv"}},
            "two layers have the alias",
        ),
    ],
)
def test_wrong_selectors_have_one_clear_line(selector: dict[str, object], text: str) -> None:
    with pytest.raises(LayerError) as caught:
        selection().select(LayerSelector(**selector))  # type: ignore[arg-type]
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


class Windows(nn.Module):
    """Folds windows into the batch axis, as Swin's attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.inner = nn.Identity()
        self.back = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x.permute(0, 2, 3, 1))
        n, h, w, c = x.shape
        fold = 4 if h * w % 4 == 0 else 1
        folded = self.inner(x.reshape(n * fold, h * w // fold, c))
        out: torch.Tensor = self.back(folded.reshape(n, h, w, c))
        return out


def test_rows_that_are_no_samples_are_refused() -> None:
    with pytest.raises(LayerError, match="no row per sample"):
        selection(Windows()).select(LayerSelector(include=("inner",)))


def test_channels_last_maps_are_recognised_by_type_and_shape() -> None:
    chosen = selection(Windows()).select(LayerSelector(include=("norm", "back")))
    assert [layer.axes.names for layer in chosen] == [CHANNELS_LAST, CHANNELS_LAST]


def test_what_could_be_both_is_never_guessed() -> None:
    ambiguous = selection(Windows(), size=3)
    with pytest.raises(
        LayerError, match=r"may be channels first or last; declare it with model\.axes"
    ):
        ambiguous.select(LayerSelector(include=("back",)))
    declared = selection(Windows(), size=3, axes={"back": "channels_last"})
    assert declared.select(LayerSelector(include=("back",)))[0].axes.names == CHANNELS_LAST
    with pytest.raises(ConfigError, match="tokens has 2 axes, the layer returns"):
        selection(Windows(), axes={"back": "tokens"}).select(LayerSelector(include=("back",)))


class Attention(nn.Module):
    """Returns what it mixed, and the weights by head, as transformers' attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.soft = nn.Softmax(-1)
        self.maps = nn.Identity()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        weights = self.soft(tokens @ tokens.transpose(1, 2))[:, None].repeat(1, 2, 1, 1)
        self.maps(x)
        return weights[:, 0] @ tokens, weights


class Queries(nn.Module):
    """Returns the queries after the last block and, in one tensor, after each of two."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        queries = self.norm(x.flatten(2).transpose(1, 2))
        return queries, torch.stack([queries, queries], 1)


def test_queries_of_several_blocks_are_not_attention() -> None:
    layers = selection(nn.Sequential(Queries()), size=4)
    assert layers.select(LayerSelector(include=("0[0]",)))[0].axes.names == TOKENS
    with pytest.raises(LayerError, match=r"0\[1\] has shape \(2, 16, 3\) per sample, which may be"):
        layers.select(LayerSelector(include=("0[1]",)))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.weights = nn.Identity()
        self.channels = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed, weights = self.attention(x)
        self.weights(weights)
        self.channels((mixed.transpose(1, 2) @ mixed)[:, None])
        out: torch.Tensor = mixed
        return out


def test_attention_is_never_taken_for_maps() -> None:
    layers = selection(Mixer(), size=4).select(
        LayerSelector(include=("attention[1]", "attention.maps"))
    )
    names = {layer.name: layer.axes.names for layer in layers}
    assert names == {"attention[1]": ATTENTION, "attention.maps": CHANNELS_FIRST}
    for layer in ("weights", "channels"):
        with pytest.raises(LayerError, match="may be attention weights or maps; declare it with"):
            selection(Mixer(), size=4).select(LayerSelector(include=(layer,)))
    words = {"weights": "attention", "chan*": "channels_first"}
    chosen = selection(Mixer(), size=4, axes=words).select(
        LayerSelector(include=("weights", "channels"))
    )
    assert [layer.axes.names for layer in chosen] == [ATTENTION, CHANNELS_FIRST]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("attnetion", "'attnetion' matches no layer; did you mean attention"),
        ("attention[2]", "'attention[2]' matches no layer; did you mean attention["),
        ("block*", "'block*' matches no layer; "),
        ("re:x.*", "'re:x.*' matches no layer; "),
    ],
)
def test_declarations_of_no_layer_are_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        selection(Mixer(), size=4, axes={key: "tokens"})
    assert text in str(caught.value)


def test_an_element_is_declared_by_its_key_or_by_a_pattern() -> None:
    for words in (
        {"attention": "tokens", "attention[1]": "channels_first"},
        {"att*[1]": "channels_first"},
        {"re:att.*[1]": "channels_first"},
    ):
        found = selection(Mixer(), size=4, axes=words)
        chosen = found.select(LayerSelector(include=("attention[0]", "attention[1]")))
        assert [layer.axes.names for layer in chosen] == [TOKENS, CHANNELS_FIRST]


def test_readings_of_a_shape() -> None:
    assert by_shape((8, 14, 14), (224, 224)) == {CHANNELS_FIRST}
    assert by_shape((14, 14, 8), (224, 224)) == {CHANNELS_LAST}
    assert by_shape((14, 14, 14), (224, 224)) == {CHANNELS_FIRST, CHANNELS_LAST}
    assert by_shape((64, 7, 14), (112, 224)) == {CHANNELS_FIRST}
    assert by_shape((7, 14, 64), (112, 224)) == {CHANNELS_LAST}


class ChannelsFirstNorm(nn.LayerNorm):
    """As ConvNeXt's, which transformers also has."""

    data_format = "channels_first"


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv2d(1, 1, 1), (4, 6, 6), CHANNELS_FIRST),
        (nn.BatchNorm2d(4), (6, 6, 6), CHANNELS_FIRST),
        (nn.LayerNorm(6), (6, 6, 6), CHANNELS_LAST),
        (nn.LayerNorm([4, 6, 6]), (4, 6, 6), CHANNELS_FIRST),  # by the shape
        (nn.LayerNorm([6, 6, 4]), (6, 6, 4), CHANNELS_LAST),
        (nn.RMSNorm([9, 6]), (9, 6), TOKENS),
        (ChannelsFirstNorm(6), (6, 6, 6), CHANNELS_FIRST),
        (nn.Linear(6, 6), (9, 6), TOKENS),
        (nn.Conv1d(1, 1, 1), (4, 9), TOKENS_LAST),
        (nn.Identity(), (9,), VECTOR),
    ],
)
def test_types_that_fix_their_axes(
    module: nn.Module, shape: tuple[int, ...], expected: tuple[str, ...]
) -> None:
    sizes = ModelSizes(image=(24, 24), channels_last=True)
    found = axes_of(shape, module=module, sizes=sizes)
    assert found == expected


@pytest.mark.parametrize(
    ("count", "tokens", "grid", "prefix"),
    [
        (197, Tokens(prefix=1, grid=(14, 14)), (14, 14), 1),
        (196, Tokens(prefix=1, grid=(14, 14)), (14, 14), 0),
        (201, Tokens(prefix=5, grid=(14, 14)), (14, 14), 5),
        (101, Tokens(prefix=1, grid=(14, 14)), None, 1),  # 100 kept of 196 are no 10 by 10 grid
        (100, Tokens(prefix=1, grid=(14, 14)), None, 1),
        (120, Tokens(prefix=1, grid=(14, 14)), None, 1),
        (49, Tokens(prefix=0, grid=(14, 14)), None, 0),
        (1, Tokens(prefix=1, grid=(14, 14)), None, 0),  # the class token alone
        (50, Tokens(prefix=1), None, 1),
        (49, Tokens(), None, 0),
    ],
)
def test_token_grids(count: int, tokens: Tokens, grid: tuple[int, int] | None, prefix: int) -> None:
    axes = TokenGrids(tokens, [], {}, (3, 224, 224)).axes("", count, TOKENS)
    assert (axes.grid, axes.prefix_tokens) == (grid, prefix)


def test_tokens_and_channels_last_are_drawn_as_maps_without_prefix() -> None:
    maps = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    last = as_layer_view("a", "a", CHANNELS_LAST, maps.transpose(1, 2, 0))
    np.testing.assert_array_equal(last.maps, maps)
    tokens = np.concatenate([np.full((2, 2), -1), maps.reshape(2, -1).T])
    view = as_layer_view("a", "a", TOKENS, tokens, grid=(3, 4), prefix_tokens=2)
    np.testing.assert_array_equal(view.maps, maps)
    view = as_layer_view("a", "a", TOKENS_LAST, tokens.T, grid=(3, 4), prefix_tokens=2)
    np.testing.assert_array_equal(view.maps, maps)


def test_spatial_reductions_leave_prefix_tokens_out() -> None:
    tokens = torch.randn(2, 1 + 12, 5)
    axes = Axes(names=TOKENS, grid=(3, 4), prefix_tokens=1)
    torch.testing.assert_close(SpatialMean()(tokens, axes), tokens[:, 1:].mean(1))
    torch.testing.assert_close(SpatialMax()(tokens, axes), tokens[:, 1:].amax(1))
    grid = AverageGrid(height=3, width=2)(tokens, axes)
    expected = tokens[:, 1:].reshape(2, 3, 2, 2, 5).mean(3).permute(0, 3, 1, 2)
    torch.testing.assert_close(grid, expected)
    maps = torch.randn(2, 6, 4, 5)
    last = Axes(names=CHANNELS_LAST)
    found = AverageGrid(height=2, width=2)(maps, last)
    assert AverageGrid(height=2, width=2).axes(last).names == CHANNELS_FIRST
    torch.testing.assert_close(
        found, maps.reshape(2, 2, 3, 2, 2, 5).mean((2, 4)).permute(0, 3, 1, 2)
    )


def test_reductions_per_layer() -> None:
    reduction = PerLayer(layers={"layer1*": "grid:2x3", "conv?": "spatial_max"}, default="none")
    assert reduction.of_layer("layer1.0") == AverageGrid(height=2, width=3)
    assert reduction.of_layer("conv1") == SpatialMax()
    assert reduction.of_layer("fc") == parse("none")
    with pytest.raises(ValueError, match=r"unknown reduction .*; use none"):
        PerLayer(layers={"a": "spatial_mode"})
    with pytest.raises(ValueError, match="grid:2"):
        parse("grid:2")
