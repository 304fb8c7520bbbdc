"""Every vision model type of transformers, small and random, as a user's folder of it.

It is fed its image processor's pixels, its tokens stand where they are said to, and parameters
that its file lacks are reported and refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.common.errors import FeaturemapsError
from pipeline.datasets.base import open_dataset
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.dummy_forward import ModelTrace, trace_model
from pipeline.extraction.settings import Extraction
from pipeline.models.transformers import TransformersModel
from tests.helpers.model_checks import check_random_layers, misplaced_tokens
from tests.helpers.processor_pixels import levels_off, pixel_values
from tests.helpers.vision_types import TYPES, save, vision_types

pytest.importorskip("transformers")

FEW = ("beit", "depth_anything", "qianfan_ocr", "siglip", "vit_mae")
MIXED = {"levit"}  # attention among few tokens, without a residual path
WITH_TOKENS = {
    "aimv2", "aimv2_vision_model", "beit", "blip", "chinese_clip", "clip", "clipseg", "cvt",
    "data2vec-vision", "deit", "dinov2", "dinov3_vit", "donut-swin", "dpt", "focalnet", "git",
    "groupvit", "ijepa", "kosmos-2", "levit", "metaclip_2", "mlcd", "owlvit", "pixio", "pvt",
    "pvt_v2", "segformer", "siglip", "swin", "swinv2", "vit", "vit_mae", "vit_msn",
}  # fmt: skip

TILES = "returns pixel_values of shape"
VIDEO = r"returns pixel_values of shape \(1, 1, 3, "
TEXT = r"takes text \(input_ids\) and has no separate vision tower"
REFUSED = {
    **dict.fromkeys(  # tiles or flattened patches, as many as a photo's aspect asks for
        """cohere2_vision cohere_compass cosmos3_edge cosmos3_omni exaone4_5 glm46v glm4v glm5_next
        glm_image glmga granite4_vision granite_docling hunyuan_vl hyperclovax_vision_v2 idefics2
        idefics3 inkling2 inkling_mm_model kimi_k25 lfm2_vl lfm3_vl llama4 llava_next
        llava_next_video llava_onevision minimax_m3_vl mllama molmo2 muse_glimmer muse_spark
        nemotron_h_omni paddleocr_vl perception_lm qwen2_5_vl qwen3_5 qwen3_5_moe qwen3_omni_moe
        qwen3_vl qwen4_exp dots3_note siglip2 smolvlm video_llama_3""".split(),
        TILES,
    ),
    **dict.fromkeys(("timesformer", "ultravbert", "videomae", "vivit"), VIDEO),
    **dict.fromkeys(  # their images are an argument beside the text, or nested in another config
        """chameleon colpali colqwen2 embedding_gemma2 emu3 ernie4_5_vl_moe fuyu gemma4
        gemma4_unified imagegpt kosmos-2.5 layoutlmv3 neomme pix2struct qwen2_5_omni_thinker
        qwen2_vl qwen3_omni_moe_thinker t5gemma2 trocr tvp udop vilt""".split(),
        TEXT,
    ),
    **dict.fromkeys(  # the forward pass takes more than images
        "diffusion_gemma glm4v_moe glm_ocr grounding-dino mm-grounding-dino omdet-turbo oneformer "
        "qwen3_vl_moe seggpt".split(),
        "missing . required positional argument",
    ),
    **dict.fromkeys(("edgetam_video", "sam2_video", "sam3_tracker_video"), "no attribute 'get_obj"),
    "sam3_video": "frame_idx must be provided",
    "aria": "pads images, and a pixel_mask is not supported",
    **dict.fromkeys(("efficientloftr", "lightglue", "superglue"), "fails: ValueError: .*A pair of"),
    "phi4_multimodal": "returns image_pixel_values, .* instead of pixel_values",
    "perceiver": "Last dimension of the inputs",
    "pe_video_encoder": "not enough values to unpack",  # takes videos
    "videoprism": "not enough values to unpack",
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "pi0"), "failed: AttributeError"),
    "qwen2_5_omni": "does not appear to have a file named spk_dict.pt",
    "video_llava": "2 networks in the file fit the model; set model.prefix=image_tower.",
    "xclip": "failed: RuntimeError: shape '.0, 8, 32.'",  # takes eight frames
    "vitmatte": "fails: TypeError: .*'trimaps'",
    "vitpose": "fails: TypeError: .*'boxes'",
}
"""Type → the reason that its refusal must give."""

PHOTO = Synthetic(samples=1, height=96, width=128)
UNBUILT = {
    "dinat": "requires the natten library",
    "layoutlmv2": "requires the detectron2 library",
    "layoutxlm": "no class of transformers makes it",
    "nougat": "Unrecognized model type for subconfig",
}
"""Type → why transformers makes no small model of it here."""
UNRUN = {
    "deepseek_ocr2", "edgetam", "eomt", "eomt_dinov3", "lw_detr", "pp_ocrv5_mobile_rec",
    "pp_ocrv6_medium_det", "pp_ocrv6_small_det", "rf_detr", "sam2",
    "sam3_tracker", "unlimited_ocr", "uvdoc",
}  # fmt: skip
"""Types whose small models fail on the processor's images, in their own code."""


def traced(folder: Path) -> ModelTrace:
    model = TransformersModel(name=str(folder))
    extraction = Extraction(model=model, dataset=PHOTO, device="cpu")
    return trace_model(extraction, open_dataset(extraction.dataset))


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            n, marks=[pytest.mark.broad] * (n not in FEW) + [pytest.mark.slow] * (n in FEW[1:3])
        )
        for n in TYPES
    ],
)
@pytest.mark.filterwarnings("ignore")  # of the models' own code
def test_type(kind: str, tmp_path: Path) -> None:
    if kind in UNBUILT:
        with pytest.raises(ValueError, match=UNBUILT[kind]):
            save(kind, tmp_path)
        pytest.skip(f"transformers makes no small model: {UNBUILT[kind]}")
    module, processor = save(kind, tmp_path)
    if kind in UNRUN:
        images = pixel_values(processor, PHOTO.open().read(0))
        with pytest.raises((RuntimeError, ValueError, TypeError, IndexError)):
            module(pixel_values=images)
        pytest.skip("the small model fails on its own processor's images")
    if kind in REFUSED:
        with pytest.raises(FeaturemapsError, match=REFUSED[kind]) as refused:
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
