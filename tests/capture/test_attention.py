"""Attention weights as layers, against explicit attention and against NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import capture
from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.verify import verify
from pipeline.capture.axes import Axes, Tokens
from pipeline.capture.selector import LayerSelector
from pipeline.cli.main import main
from pipeline.common.errors import LayerError
from pipeline.extraction.reductions.attention import Attention
from pipeline.models.timm import TimmModel
from pipeline.renderers.grid import Grid
from pipeline.rendering.views import sample_view
from tests.helpers.small_selection import selection
from tests.helpers.small_vit import MODEL, SMALL

IMAGES = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 32, 32))).float()


class OneBlock(nn.Module):
    """Attention over the four quadrants of an image, computed by `attend`."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor], heads: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8 * 3, 16, 16)
        self.attend = attend
        self.num_heads = heads

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)  # (sample, token, 24)
        q, k, v = tokens.reshape(len(images), 4, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.attend(q, k, v).transpose(1, 2).flatten(2).mean(1)


class Softmax(nn.Module):
    """Explicit attention by submodules: a softmax module and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax, self.dropout = nn.Softmax(dim=-1), nn.Dropout(0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
        return torch.einsum("bhqk,bhkd->bhqd", self.dropout(self.softmax(scores)), v)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


def flat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads and samples on one axis, and values before weights."""
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    weights = torch.bmm(q, k.mT).mul_(q.shape[-1] ** -0.5).softmax(dim=2)
    return torch.bmm(v.mT, weights.mT).mT.unflatten(0, (-1, 2))


ATTENTION = {
    "sdpa": (F.scaled_dot_product_attention, "output"),
    "explicit": (plain, "output"),
    "one axis": (flat, "output"),
    "submodules": (Softmax(), "attend"),
}


def numpy_weights(model: OneBlock, images: Tensor) -> np.ndarray:
    """Return softmax(q kᵀ / √d), computed in float64 by NumPy."""
    with torch.no_grad():
        tokens = model.patches(images).flatten(2).transpose(1, 2).double().numpy()
    q, k, _ = tokens.reshape(len(images), 4, 3, model.num_heads, -1).transpose(2, 0, 3, 1, 4)
    scores = np.exp(q @ k.transpose(0, 1, 3, 2) / q.shape[-1] ** 0.5)
    return scores / scores.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", ATTENTION)
def test_weights_are_the_softmax_whichever_way_they_are_computed(kind: str) -> None:
    attend, layer = ATTENTION[kind]
    model = OneBlock(attend).eval()
    with torch.inference_mode():
        expected = model(IMAGES)
        with capture(model, [f"{layer}@attention"]) as activations:
            output = model(IMAGES)
    assert torch.equal(output, expected)
    weights = activations[f"{layer}@attention"]
    assert weights.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(weights, numpy_weights(model, IMAGES), rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"scale": 0.5},
        {"attn_mask": torch.tensor([[True, False, True, True]] * 4)},
        {"attn_mask": torch.linspace(-3, 3, 16).reshape(4, 4)},
        {"attn_mask": torch.tensor([[True] * 4] * 3 + [[False] * 4])},
        {"enable_gqa": True},
    ],
    ids=["causal", "scale", "mask", "bias", "hidden row", "grouped queries"],
)
def test_weights_times_values_are_the_fused_result(options: dict[str, object]) -> None:
    gqa = "enable_gqa" in options
    values: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if gqa:
            k, v = k[:, :1], v[:, :1]
        values.append(v)
        return F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]

    model = OneBlock(attend).eval()
    paths = ["output@attention", "output@scaled_dot_product_attention"]
    with torch.inference_mode(), capture(model, paths) as activations:
        model(IMAGES)
    weights, result = (activations[path] for path in paths)
    torch.testing.assert_close(weights @ values[0], result)
    assert weights.shape == (2, 2, 4, 4)


def test_multihead_attention_gives_the_weights_of_every_head() -> None:
    model = nn.Sequential(nn.Flatten(2), nn.LayerNorm(1024), nn.Linear(1024, 8))
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(*model, block).eval()
    with torch.inference_mode(), capture(model, ["3.self_attn@attention", "2"]) as activations:
        model(IMAGES)
    with torch.inference_mode():
        tokens = activations["2"]
        _, expected = block.self_attn(tokens, tokens, tokens, average_attn_weights=False)
    torch.testing.assert_close(activations["3.self_attn@attention"], expected)


def test_windows_are_put_back_to_one_row_per_sample() -> None:
    """Two windows of two tokens: query = window by window, key = position in the window."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(2, (2, 2)).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        result = F.scaled_dot_product_attention(q, k, v)  # (sample · window, head, 2, …)
        return result.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2, 3)

    model = OneBlock(attend).eval()
    with torch.inference_mode(), capture(model, ["output@attention"]) as activations:
        model(IMAGES)
        both = activations["output@attention"]
        model(IMAGES[1:])
        one = activations["output@attention"]
    with torch.no_grad():
        tokens = model.patches(IMAGES).flatten(2).transpose(1, 2).double().numpy()
    q, k, _ = tokens.reshape(2, 4, 3, 2, -1).transpose(2, 0, 3, 1, 4)
    for window in range(2):
        rows = slice(2 * window, 2 * window + 2)
        scores = np.exp(q[:, :, rows] @ k[:, :, rows].transpose(0, 1, 3, 2) / 4**0.5)
        expected = scores / scores.sum(-1, keepdims=True)
        np.testing.assert_allclose(both[:, :, rows], expected, rtol=1e-5)
    torch.testing.assert_close(both[1:], one)


def test_a_softmax_that_weighs_no_products_is_not_attention() -> None:
    """Linear attention: softmax of queries and keys themselves."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q.softmax(-1) @ (k.softmax(-2).mT @ v)

    model = OneBlock(attend).eval()
    with torch.inference_mode(), capture(model, ["output@attention"]) as activations:
        model(IMAGES)
    with pytest.raises(LayerError, match="was not reached"):
        activations["output@attention"]


MIX = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
"""Between heads; a row of mixed weights does not sum to 1."""


@pytest.mark.parametrize(
    "mix",
    [
        lambda w: torch.einsum("bhqk,hg->bgqk", w, MIX),
        lambda w: torch.einsum("...hqk, gh -> ...gqk", w, MIX.mT),
        lambda w: torch.einsum("hg,bhqk->bgqk", MIX, w),
        lambda w: (w.permute(0, 2, 3, 1) @ MIX).permute(0, 3, 1, 2),
    ],
)
def test_heads_mixed_by_a_product_are_not_yet_multiplied_with_the_values(
    mix: Callable[[Tensor], Tensor],
) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return mix((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)) @ v

    model = OneBlock(attend).eval()
    with torch.inference_mode(), capture(model, ["output@attention"]) as activations:
        model(IMAGES)
    expected = np.einsum("bhqk,hg->bgqk", numpy_weights(model, IMAGES), MIX.numpy())
    np.testing.assert_allclose(activations["output@attention"], expected, rtol=1e-4, atol=1e-6)


def numpy_rollout(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the rollout of `(sample, head, query, key)` weights, block by block, in float64."""
    product = np.eye(blocks[0].shape[-1])[None]
    for weights in blocks:
        mixed = weights.astype(np.float64).mean(1) + np.eye(weights.shape[-1])
        product = mixed / mixed.sum(-1, keepdims=True) @ product
    return product


def test_attention_and_rollout_are_archived_by_head_query_and_key(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = (*MODEL, "layers=attention", "reduction=none")
    assert main(("extract", *words, f"archive={tmp_path}/a", f"hydra.run.dir={tmp_path}")) == 0
    assert verify(tmp_path / "a")["samples"] == 2
    source = TimmModel(name="vit_tiny_patch16_224", weights=None, arguments=SMALL)
    module = source.load(seed=0).module
    names = [f"blocks.{number}.attn@attention" for number in range(2)]
    with Archive.open(tmp_path / "a") as archive:
        assert list(archive.layers) == [*names, "output@rollout"]
        entry = archive.layers[names[0]].entry
        assert entry.axes == ("head", "query", "key")
        assert (entry.grid, entry.prefix_tokens) == ((4, 4), 1)
        assert entry.shape == (3, 17, 17)
        assert entry.channels == 3
        pixels = torch.from_numpy(archive.image(0).transpose(2, 0, 1)[None])
        images = source.load(seed=0).transform.normalize(pixels)
        with capture(module, ["blocks.0.attn.qkv"]) as outputs, torch.no_grad():
            module(images)
        query, key, _ = outputs["blocks.0.attn.qkv"].reshape(17, 3, 3, 8).permute(1, 2, 0, 3)
        expected = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1).numpy()
        np.testing.assert_allclose(archive.layers[names[0]][0], expected, atol=1e-6)
        blocks = [np.asarray(archive.layers[name][[0, 1]]) for name in names]
        rollout = np.asarray(archive.layers["output@rollout"][[0, 1]])
        np.testing.assert_allclose(rollout[:, 0], numpy_rollout(blocks), rtol=1e-5)
        drawn = [*Grid().draw(sample_view(archive, archive.samples[0]))]
        assert drawn[0].layer == names[0]
    capfd.readouterr()


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("heads", ["all", "mean"])
@pytest.mark.parametrize("query", ["class", "mean", "all"])
def test_reductions_of_attention(query: Any, heads: Any, prefix: int) -> None:
    full = np.random.default_rng(0).random((2, 3, 5, 5))
    expected = full.mean(1, keepdims=True) if heads == "mean" else full
    if query != "all":
        first = query == "class" and prefix == 1
        expected = expected[:, :, 0] if first else expected.mean(2)
    axes = Axes(
        names=("head", "query", "key"), grid=(2, 2), prefix_tokens=prefix, class_token=prefix == 1
    )
    reduction = Attention(query=query, heads=heads)
    np.testing.assert_allclose(reduction(torch.from_numpy(full), axes), expected, rtol=1e-6)
    reduced = reduction.axes(axes)
    assert reduced.names == (axes.names if expected.ndim == 4 else ("channel", "token"))
    assert (reduced.grid, reduced.prefix_tokens) == ((2, 2), prefix)


@pytest.mark.parametrize("registers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_attention_of_the_class_token_is_archived_by_default(
    registers: int, tmp_path: Path
) -> None:
    """Registers are no class token: their model's attention is averaged over queries."""
    words = ("class_token=false", "global_pool=avg", f"reg_tokens={registers}")
    own = [f"+model.arguments.{word}" for word in words if registers]
    command = ("extract", *MODEL, *own, "layers=attention", f"hydra.run.dir={tmp_path}")
    for name, reduction in {"full": ["reduction=none"], "a": []}.items():
        assert main((*command, *reduction, f"archive={tmp_path}/{name}")) == 0
    with Archive.open(tmp_path / "full") as archive:
        full = np.asarray(archive.layers["blocks.1.attn@attention"][0])
    prefix = registers or 1
    with Archive.open(tmp_path / "a") as archive:
        layer = archive.layers["blocks.1.attn@attention"]
        entry = layer.entry
        assert (entry.axes, entry.shape) == (("channel", "token"), (3, 16 + prefix))
        assert (entry.grid, entry.prefix_tokens) == ((4, 4), prefix)
        assert entry.class_token == (not registers)
        expected = full.mean(1) if registers else full[:, 0]
        np.testing.assert_allclose(layer[0], expected, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(layer[0]).sum(-1), 1, rtol=1e-5)
        assert archive.layers["output@rollout"].entry.shape == (1, 16 + prefix)


def test_fused_attention_names_the_layer_to_use(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("blocks.0.attn.attn_drop", "blocks.*.attn.attn_drop"):
        assert main(("plan", *MODEL, f"layers.include=[{name}]", "layers.types=[]")) == 2
        assert "use blocks.0.attn@attention" in capfd.readouterr().err


def test_explicit_weights_have_the_tokens_of_the_attention_by_name() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    for block in model.blocks:
        block.attn.fused_attn = False
    resolver = selection(model, size=32, functions=True, tokens=Tokens(prefix=1, grid=(4, 4)))
    names = ("blocks.0.attn.attn_drop", "blocks.0.attn@attention")
    explicit, by_name = (resolver.select(LayerSelector(include=(name,)))[0] for name in names)
    assert explicit.axes == by_name.axes
    assert (explicit.axes.grid, explicit.axes.class_token) == ((4, 4), True)


class Flash(nn.Module):
    """Calls a kernel that cannot be observed."""

    def forward(self, images: Tensor) -> Tensor:
        return flash_attn_func(images) if images.ndim == 9 else images.mean((2, 3))


def flash_attn_func(images: Tensor) -> Tensor:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("model", "images", "problem"),
    [
        (Flash(), IMAGES, "attention by flash-attn cannot be observed"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), IMAGES, "no attention was observed"),
        (
            OneBlock(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)),
            IMAGES,
            r"drops weights at random \(dropout_p=0.5\)",
        ),
    ],
)
def test_attention_that_cannot_be_observed_says_why(
    model: nn.Module, images: Tensor, problem: str
) -> None:
    resolver = selection(model.eval(), size=images.shape[-1], functions=True)
    for pattern in ("output@attention", "*@attention"):
        with pytest.raises(LayerError, match=problem):
            resolver.select(LayerSelector(include=(pattern,)))


@pytest.mark.parametrize("again", [False, True], ids=["plain", "checkpoint"])
@pytest.mark.parametrize("module", [True, False], ids=["multi-head", "fused"])
def test_training_with_dropout_goes_on_as_if_nothing_was_observed(
    module: bool, again: bool
) -> None:
    from torch.utils.checkpoint import checkpoint

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            if module:
                return x + self.heads(x, x, x)[0]
            q = x.unflatten(-1, (2, 4)).transpose(1, 2)
            attended = F.scaled_dot_product_attention(q, q.exp(), q, dropout_p=0.5)
            return x + attended.transpose(1, 2).flatten(2)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc(x)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            return x

    torch.manual_seed(0)
    model, tokens = Model(), torch.randn(2, 5, 8)
    paths = [f"blocks.{i}{'.heads' if module else ''}@attention" for i in (0, 1)]
    results = []
    for names in ([], [*paths, "output@rollout"]):
        model.zero_grad()
        torch.manual_seed(1)
        with capture(model, names) as activations:
            output = model(tokens)
            output.square().mean().backward()
        assert model.fc.weight.grad is not None
        results.append((output, model.fc.weight.grad.clone(), [activations[n] for n in names]))
    (plain, gradient, _), (output, observed, weights) = results
    assert torch.equal(output, plain)
    assert torch.equal(observed, gradient)
    for rows in weights:  # no weight is dropped
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
        assert (rows > 0).all()
