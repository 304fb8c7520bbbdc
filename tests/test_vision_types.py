"""Every vision model type of transformers, small and random, as a user's folder of it.

It is fed its image processor's pixels, its tokens stand where they are said to, and parameters
that its file lacks are reported and refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.model_trace import ModelTrace, trace_model
from pipeline.extraction.settings import Extraction
from pipeline.foundation.errors import ConfigError
from pipeline.models.transformers import TransformersModel
from tests.model_checks import check_random_layers, misplaced_tokens
from tests.test_hf_processors import levels_off
from tests.vision_types import TYPES, save, vision_types

pytest.importorskip("transformers")

FEW = ("beit", "dinov2", "siglip", "vit_mae")
MIXED = {"levit"}  # attention among few tokens, without a residual path
WITH_TOKENS = {
    "aimv2", "aimv2_vision_model", "beit", "blip", "chinese_clip", "clip", "clipseg", "cvt",
    "data2vec-vision", "deit", "dinov2", "dinov3_vit", "donut-swin", "dpt", "focalnet", "git",
    "groupvit", "ijepa", "kosmos-2", "levit", "metaclip_2", "mlcd", "owlvit", "pixio", "pvt",
    "pvt_v2", "segformer", "siglip", "swin", "swinv2", "vit", "vit_mae", "vit_msn",
}  # fmt: skip

SIZE = "the weights' transform leaves the size of the images open"
VIDEO = r"makes of one image pixel_values of shape \(1, 1, 3, "
REFUSED = {
    **dict.fromkeys(  # their processors keep the photo's aspect
        ("detr", "glpn", "pixtral", "swin2sr", "textnet", "vilt", "yolos"), SIZE
    ),
    **dict.fromkeys(("timesformer", "videomae", "vivit"), VIDEO),
    **dict.fromkeys(("layoutlmv3", "udop"), "LayoutLMv3ImageProcessor fails: ImportError"),
    **dict.fromkeys(("idefics3", "siglip2"), "makes of one image pixel_values of shape"),
    "imagegpt": "Clusters must be provided",  # takes palette indices
    "seggpt": "missing 2 required positional arguments: 'prompt_pixel_values'",
}
"""Type → the reason that its refusal must give."""


def traced(folder: Path) -> ModelTrace:
    model = TransformersModel(name=str(folder))
    return trace_model(Extraction(model=model, dataset=Synthetic(samples=1), device="cpu"))


@pytest.mark.parametrize(
    "kind", [pytest.param(n, marks=[pytest.mark.broad] * (n not in FEW)) for n in TYPES]
)
def test_type(kind: str, tmp_path: Path) -> None:
    try:
        _, processor = save(kind, tmp_path)
    except ValueError as error:
        pytest.skip(f"transformers makes no small model: {error}")
    if kind in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[kind]) as refused:
            traced(tmp_path)
        assert "\n" not in str(refused.value)
        return
    model = traced(tmp_path)
    if processor is not None:
        assert levels_off(processor, model.model.transform) <= 0.51

    wrong, right = misplaced_tokens(model, mixed=kind in MIXED)
    assert not wrong, wrong
    assert right or kind not in WITH_TOKENS

    file = tmp_path / "model.safetensors"

    def retrace(state: dict[str, Any]) -> ModelTrace:
        save_file(state, file, metadata={"format": "pt"})
        return traced(tmp_path)

    check_random_layers(model, load_file(file), retrace)


@pytest.mark.broad
def test_no_type_is_left_out() -> None:
    assert sorted(TYPES) == vision_types()
