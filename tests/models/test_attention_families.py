"""Attention weights of every family, against the explicit computation of the library itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from pipeline import capture
from pipeline.common.errors import LayerError
from pipeline.datasets.synthetic import Synthetic
from pipeline.models.transformers import TransformersModel
from tests.helpers.processor_pixels import pixel_values
from tests.helpers.timm_families import FAMILIES
from tests.helpers.vision_types import TYPES, save

timm = pytest.importorskip("timm")
MORE = ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "vit_base_patch16_siglip_224",
        "vit_base_patch16_clip_224", "vit_wee_patch16_reg1_gap_256", "resnet50_clip",
        "vit_small_patch16_18x2_224", "botnet26t_256", "pvt_v2_b0", "levit_conv_128s",
        "caformer_s18", "mobilenetv4_hybrid_medium", "maxvit_tiny_rw_224"]  # fmt: skip
FEW = ("test_vit", "test_vit_relpos")
NOT_OF_PRODUCTS = ("OutlookAttention",)
"""Modules whose softmax weighs no products of queries and keys."""
LAYERS = "*@attention"
OF_TIMM = ("gemma3n", "timm_wrapper")
PACKED = ("lighton_ocr", "mistral3", "mistral_large4", "pixtral")
"""Types that put all images into one sequence."""


def rows(weights: Tensor, samples: int, heads: int | None) -> np.ndarray:
    """Return weights as `(sample, head, query, key)`, windows joined with the queries."""
    array = weights.numpy()
    *lead, queries, keys = array.shape
    array = array.reshape(samples, -1, *lead[1:], queries, keys)
    if array.ndim == 4:
        return array
    if array.shape[1] == 1:
        array = array[:, 0]
        if array.ndim == 4:
            return array
    if array.shape[1] != heads or array.shape[2] == heads:  # (sample, window, head, query, key)
        array = array.swapaxes(1, 2)
    return array.reshape(samples, array.shape[1], -1, keys)


@contextmanager
def dropped(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield the outputs of timm's attention dropouts by the name of the attention module."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        drop = getattr(module, "attn_drop", None)
        if isinstance(drop, nn.Module) and type(module).__name__ not in NOT_OF_PRODUCTS:

            def hook(_module: nn.Module, _args: object, output: Tensor, name: str = name) -> None:
                outputs[name] = output

            handles.append(drop.register_forward_hook(hook))
    yield outputs
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.broad] * (n not in FEW)) for n in [*FAMILIES, *MORE]],
)
@pytest.mark.filterwarnings("ignore")  # of the models' own code
def test_timm_family(name: str) -> None:
    torch.manual_seed(0)
    size = {"img_size": 256} if name == "qwen3_vit_88m" else {}  # 2,304 tokens otherwise
    model = timm.create_model(name, **size).eval()
    shape = (3, 256, 256) if size else model.default_cfg["input_size"]
    images = torch.randn(2, *shape)
    with torch.inference_mode():
        expected = model(images)
        with capture(model, LAYERS) as activations:
            output = model(images)
        fused = dict(activations)
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        with capture(model, LAYERS) as activations, dropped(model) as explicit:
            model(images)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    modules = dict(model.named_modules())
    for layer, weights in explicit.items():
        heads = getattr(modules[layer], "num_heads", getattr(modules[layer], "heads", None))
        own = rows(weights, len(images), heads)
        np.testing.assert_array_equal(activations[f"{layer}@attention"], own, err_msg=layer)
        close = fused[f"{layer}@attention"]  # to rounding: earlier blocks round differently
        np.testing.assert_allclose(close, own, rtol=1e-3, atol=1e-5, err_msg=layer)


def test_torchvision_vit() -> None:
    torch.manual_seed(0)
    model = torchvision.models.vit_b_16(image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    layer = "encoder.layers.encoder_layer_3"
    with torch.inference_mode():
        expected = model(images)
        with capture(model, [f"{layer}.self_attention@attention", f"{layer}.ln_1"]) as activations:
            output = model(images)
        tokens, attend = activations[f"{layer}.ln_1"], model.get_submodule(layer).self_attention
        _, weights = attend(tokens, tokens, tokens, average_attn_weights=False)
    assert torch.equal(output, expected)
    torch.testing.assert_close(activations[f"{layer}.self_attention@attention"], weights)


@pytest.mark.parametrize("name", [pytest.param("swin_t", marks=pytest.mark.slow), "swin_v2_t"])
def test_torchvision_swin(name: str) -> None:
    """The first block, whose windows are not shifted, against NumPy."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)().eval()
    images = torch.randn(2, 3, 64, 64)
    block = model.features[1][0].attn
    with torch.inference_mode():
        expected = model(images)
        paths = ["features.1.0.attn@attention", "features.1.0.attn@linear:0"]
        with capture(model, paths) as activations:
            output = model(images)
        bias = block.get_relative_position_bias()[0].double().numpy()
    assert torch.equal(output, expected)
    qkv = activations[paths[1]].double().numpy()  # (window, position, query key value)
    size = qkv.shape[1]
    q, k, _ = qkv.reshape(-1, size, 3, 3, 32).transpose(2, 0, 3, 1, 4)
    if name == "swin_t":
        scores = q @ k.transpose(0, 1, 3, 2) / 32**0.5
    else:
        q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
        scale = np.exp(np.minimum(block.logit_scale.detach().double().numpy(), np.log(100)))
        scores = q @ k.transpose(0, 1, 3, 2) * scale
    weights = np.exp(scores + bias)
    weights /= weights.sum(-1, keepdims=True)
    windows = len(qkv) // 2
    own = weights.reshape(2, windows, 3, size, size).transpose(0, 2, 1, 3, 4)
    np.testing.assert_allclose(
        activations[paths[0]], own.reshape(2, 3, windows * size, size), rtol=1e-4, atol=1e-6
    )


def attentions_in(output: object) -> list[Tensor]:
    """Return the attention weights that a model of transformers returns, towers included."""
    found: list[Tensor] = []
    for key, value in getattr(output, "items", dict)():
        if (
            key.endswith("attentions")
            and not key.startswith("mask_decoder")
            and isinstance(value, (tuple, list))
        ):
            found += [x for x in value if isinstance(x, Tensor) and x.ndim == 4]  # 5: deformable
        else:
            found += attentions_in(value)
    return found


@pytest.mark.parametrize(
    "kind", [pytest.param(n, marks=[pytest.mark.broad] * (n not in ("vit", "swin"))) for n in TYPES]
)
@pytest.mark.filterwarnings("ignore")  # of the models' own code
def test_transformers_type(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    try:
        _, processor = save(kind, tmp_path)
        model = TransformersModel(name=str(tmp_path)).load(seed=0).module  # its image tower
        images = pixel_values(processor, Synthetic(samples=1, height=96, width=128).open().read(0))
        images = images.repeat(2, *[1] * (images.ndim - 1))
        with torch.inference_mode():
            model(images)
    except Exception as error:  # noqa: BLE001 - of any model's own code
        pytest.skip(f"takes more than images, or makes no small model: {error!r:.80}")
    if not hasattr(model, "set_attn_implementation") or kind in OF_TIMM:
        pytest.skip("has no choice of attention")
    with torch.inference_mode():
        if kind in PACKED:
            with pytest.raises(LayerError, match="no rows per sample"), capture(model, LAYERS):
                model(images)
            return
        torch.manual_seed(0)  # masked autoencoders draw patches
        expected = model(images)
        torch.manual_seed(0)
        with capture(model, LAYERS) as activations:
            output = model(images)
        fused = dict(activations)
        torch.manual_seed(0)
        model.set_attn_implementation("eager")
        with capture(model, LAYERS) as activations:
            own = attentions_in(model(images, output_attentions=True))
    for key, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(output[key], value, rtol=0, atol=0, equal_nan=True)
    if not own:
        pytest.skip("returns no attention weights")
    for weights in own:
        if kind == "deimv2" and weights.shape[-1] == 12:
            continue  # deformable: over 12 points
        array = weights.numpy()
        same = [
            name
            for name, x in activations.items()
            if np.array_equal(x, rows(weights, 2, x.shape[1])) or np.array_equal(x, array)
        ]
        assert same, f"{tuple(weights.shape)} is not among {[*activations]}"
        np.testing.assert_allclose(
            fused[same[0]], activations[same[0]], rtol=1e-3, atol=1e-5, err_msg=same[0]
        )
