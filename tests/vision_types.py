"""Every vision model type of transformers, as a small random model with its image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

_TWO = (
    "num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth", "encoder_layers",
    "decoder_layers", "num_decoder_layers", "encoder_num_hidden_layers",
    "decoder_num_hidden_layers", "layers",
)  # fmt: skip
_NARROW = {
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads", "n_heads",
                     "num_key_value_heads", "encoder_attention_heads", "decoder_attention_heads"),
                    2),
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "n_embd", "hidden_dim",
                     "projection_dim", "out_hidden_size", "decoder_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "mlp_dim",
                     "moe_intermediate_size", "d_ff"), 64),
    **dict.fromkeys(("head_dim", "d_kv"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 16),
    "num_queries": 4, "image_embedding_size": 4,
}  # fmt: skip
_PER_LAYER = (
    "layer_types", "mlp_layer_types", "per_layer_config", "out_features", "out_indices",
    "stage_names",
)  # fmt: skip
TOO_LARGE = 80_000_000

TYPES = """
aimv2 aimv2_vision_model align altclip aria aya_vision beit bit blip blip-2 bridgetower chameleon
chinese_clip chmv2 clip clipseg cohere2_vision cohere_compass colpali colqwen2 conditional_detr
convnext convnextv2 cosmos3_edge cosmos3_omni cvt data2vec-vision deepseek_ocr2 deepseek_vl
deepseek_vl_hybrid deformable_detr deimv2 deit depth_anything depth_pro detr diffusion_gemma dinat
dinov2 dinov3_vit donut-swin dots3_note dpt edgetam edgetam_video efficientloftr efficientnet
embedding_gemma2 emu3 eomt eomt_dinov3 ernie4_5_vl_moe exaone4_5 fast_vlm flava florence2 focalnet
fuyu gemma3 gemma3n gemma4 gemma4_unified git glm46v glm4v glm4v_moe glm5_next glm_image glm_ocr
glmga glpn got_ocr2 granite4_vision granite_docling grounding-dino groupvit hiera hunyuan_vl
hyperclovax_vision_v2 idefics idefics2 idefics3 ijepa imagegpt inkling2 inkling_mm_model
instructblip instructblipvideo internvl janus kimi_k25 kosmos-2 kosmos-2.5 layoutlmv2 layoutlmv3
layoutxlm levit lfm2_vl lfm3_vl lightglue lighton_ocr llama4 llava llava_next llava_next_video
llava_onevision lw_detr mask2former maskformer metaclip_2 mgp-str minicpm_ocr minicpmv4_6
minicpmv4_7 minimax_m3_vl mistral3 mistral_large4 mlcd mllama mm-grounding-dino mobilenet_v1
mobilenet_v2 mobilevit mobilevitv2 modernvbert molmo2 muse_glimmer muse_spark nemotron_h_omni
neomme nougat omdet-turbo oneformer ovis2 owlv2 owlvit paddleocr_vl paligemma pe_video_encoder
perceiver perception_lm phi4_multimodal pi0 pix2struct pixio pixtral poolformer pp_chart2table
pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4 pp_formulanet pp_lcnet pp_ocrv5_mobile_det
pp_ocrv5_mobile_rec pp_ocrv5_server_det pp_ocrv5_server_rec pp_ocrv6_medium_det pp_ocrv6_small_det
pp_ocrv6_small_rec pp_ocrv6_tiny_rec prompt_depth_anything pvt pvt_v2 qianfan_ocr qwen2_5_omni
qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_omni_moe qwen3_omni_moe_thinker
qwen3_vl qwen3_vl_moe qwen4_exp regnet resnet rf_detr rt_detr sam sam2 sam2_video sam3
sam3_lite_text sam3_tracker sam3_tracker_video sam3_video sam_hq sapiens2 segformer seggpt
shieldgemma2 siglip siglip2 slanet slanext smolvlm step3p7 superglue superpoint swiftformer swin
swin2sr swinv2 t5gemma2 t5gemma2_encoder table-transformer textnet timesformer timm_wrapper tipsv2
tipsv2_dpt trocr tvp udop ultravbert unlimited_ocr upernet uvdoc video_llama_3 video_llava
videomae videoprism vilt vipllava vision-text-dual-encoder vit vit_mae vit_msn vitmatte vitpose
vivit xclip yolos zoedepth
""".split()
"""What `vision_types` returns; it imports every configuration, which takes half a minute."""


def vision_types() -> list[str]:
    """Return the types that have an image processor, or a configuration of images among others."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    towers = {"vision_config", "image_config"}
    return [
        name
        for name in sorted(CONFIG_MAPPING)
        if name in IMAGE_PROCESSOR_MAPPING_NAMES
        or towers & {*(getattr(CONFIG_MAPPING[name], "sub_configs", None) or {})}
    ]


def small_model(kind: str) -> nn.Module:
    """Return a random model of a type, as small as its configuration lets it be.

    Raises:
        ValueError: with transformers' own errors, when it makes no model of the type.
    """
    import transformers

    errors = []
    for narrow in (True, False):
        try:
            values = transformers.AutoConfig.for_model(kind).to_dict()
            _shrink(values, narrow=narrow)
            config = transformers.CONFIG_MAPPING[kind].from_dict(values)
            with torch.device("meta"):
                module = transformers.AutoModel.from_config(config)
            if sum(tensor.numel() for tensor in module.parameters()) > TOO_LARGE:
                raise MemoryError("too large")
            torch.manual_seed(0)
            made: nn.Module = transformers.AutoModel.from_config(config).eval()
            return made
        except Exception as error:  # noqa: BLE001 - of any model's own code
            errors.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    raise ValueError(" | ".join(errors))


def _shrink(values: dict[str, Any], *, narrow: bool) -> None:
    """Leave few layers and words of a configuration; with `narrow`, few channels and pixels."""
    stages = values.get("depths")
    for key in _PER_LAYER:
        values.pop(key, None)
    if isinstance(stages, list) and all(isinstance(n, int) for n in stages):
        values["depths"] = [1] * len(stages)
    else:
        values |= {k: 2 for k in _TWO if isinstance(values.get(k), int) and values[k] > 2}
    if isinstance(values.get("vocab_size"), int):
        values["vocab_size"] = 256
        values |= {k: 0 for k, v in values.items() if k.endswith("_token_id") and type(v) is int}
    if narrow:
        if not stages and not isinstance(values.get("num_heads"), list):
            small = {k: n for k, n in _NARROW.items() if type(values.get(k)) is int}
            values |= {k: n for k, n in small.items() if values[k] > n}
        patch, size = values.get("patch_size"), values.get("image_size")
        if not stages and isinstance(patch, int) and isinstance(size, (int, list)):
            side = 4 * patch if patch > 8 else 64
            values["image_size"] = side if isinstance(size, int) else [side, side]
    for part in values.values():
        if isinstance(part, dict):
            _shrink(part, narrow=narrow)


def small_processor(kind: str, size: object) -> Any:
    """Return a type's image processor for images of a model's size; None where it has none."""
    import transformers

    try:
        name = transformers.IMAGE_PROCESSOR_MAPPING[transformers.CONFIG_MAPPING[kind]]
    except KeyError:
        return None
    chosen = (name.get("torchvision") or name.get("pil")) if isinstance(name, dict) else name
    if isinstance(chosen, tuple):
        chosen = next(one for one in reversed(chosen) if one is not None)
    processor = chosen()
    if isinstance(size, (list, tuple)):
        size = size[0]
    if isinstance(size, int):
        for key in ("size", "crop_size", "pad_size"):
            sides = getattr(processor, key, None)
            keys = [k for k in ("height", "width", "shortest_edge", "longest_edge")
                    if sides is not None and k in sides and sides[k]]  # fmt: skip
            if keys:
                setattr(processor, key, type(sides)(**dict.fromkeys(keys, size)))
    return processor


def save(kind: str, folder: Path) -> tuple[nn.Module, Any]:
    """Save a small model of a type and its image processor; return both, the model's image tower.

    Raises:
        ValueError: see `small_model`.
    """
    module = small_model(kind)
    module.save_pretrained(folder)
    config = module.config
    for name in ("vision_config", "image_config"):
        config = getattr(config, name, config)
    processor = small_processor(kind, getattr(config, "image_size", None))
    if processor is not None:
        processor.save_pretrained(folder)
    return module, processor
