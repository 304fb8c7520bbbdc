"""Every vision model type of transformers, as a small random model with its image processor."""

import re
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from torch import nn

_DEPTHS = (
    "num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth", "encoder_layers",
    "decoder_layers", "num_decoder_layers", "encoder_num_hidden_layers",
    "decoder_num_hidden_layers", "layers",
)  # fmt: skip
_NARROW = {
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads", "n_heads",
                     "num_key_value_heads", "encoder_attention_heads", "decoder_attention_heads"),
                    2),
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "n_embd", "hidden_dim",
                     "projection_dim", "out_hidden_size", "text_hidden_size",
                     "decoder_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "mlp_dim",
                     "moe_intermediate_size", "d_ff"), 64),
    **dict.fromkeys(("head_dim", "d_kv"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 16),
    "num_queries": 4, "image_embedding_size": 4,
}  # fmt: skip
TOO_LARGE = 140_000_000

_SHAPES = (("vertical_long_to_small_conv", 1, 0), ("horizontal_small_to_long_conv", 0, 1),
           ("symmetric_conv_long", 1, 1))  # fmt: skip
_STRIPS = {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]} | {
    f"{name}_{length}ratio": [[1 + high * n, 1 + wide * n], 1, [high * n // 2, wide * n // 2]]
    for name, high, wide in _SHAPES
    for length, n in (("long", 6), ("mid", 4), ("short", 2))
}
_WIDE = {
    "depth_anything", "edgetam", "eomt_dinov3", "pp_ocrv5_server_det",
    "pp_ocrv6_medium_det", "pp_ocrv6_small_det", "prompt_depth_anything", "rf_detr", "sam2",
    "sam", "sam_hq", "sapiens2",
}  # fmt: skip
"""Types whose parts do not fit each other with fewer channels."""
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_SAM = {"vision_config.image_size": 256, "prompt_encoder_config.image_size": 256,
        "prompt_encoder_config.image_embedding_size": 16}  # fmt: skip
_REQUIRED: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 1}},
    "cohere_compass": {
        "text_config.rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}
    },
    "deepseek_ocr2": {"text_config.mlp_layer_types": ["dense", "dense"]},
    "depth_pro": {"patch_size": 64, "intermediate_hook_ids": [1, 1]},
    "diffusion_gemma": {"text_config.num_experts": 4, "text_config.top_k_experts": 2,
                        "text_config.moe_intermediate_size": 64},
    "dots3_note": {"vision_config.adapter_in_dim": 32, "audio_config.adapter_input_size": 32,
                   "vision_config.adapter_out_dim": 32, "audio_config.adapter_out_dim": 32},
    "emu3": {"vocabulary_map": {"<|extra_200|>": 1, "<image>": 2},
             "vq_config.base_channels": 32},
    "ernie4_5_vl_moe": {"text_config.rope_parameters": _ROPE | {"mrope_section": [3, 3, 2]}},
    "fast_vlm": {"vision_config.architecture": "fastvit_t8"},
    "gemma3n": {"text_config.num_kv_shared_layers": 0,
                "text_config.vocab_size_per_layer_input": 256,
                "vision_config.architecture": "mobilenetv5_base"},
    "gemma4": {"text_config.vocab_size_per_layer_input": 256},
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "downsample_rate": "1/2",
                        "vision_config.hidden_size": 128},
    "hunyuan_vl": {"text_config.head_dim": 16},
    "minicpm_ocr": {"vision_config.patch_size": 14},
    "minicpmv4_6": {"vision_config.patch_size": 14},
    "minicpmv4_7": {"vision_config.patch_size": 14},
    "mistral_large4": {"text_config.kv_source_layers": [0, 1]},
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0]},
    "muse_spark": {"audio_config.out_hidden_size": 32},
    "perceiver": {"num_self_attends_per_block": 2},
    "pe_video_encoder": {"vision_config.architecture": "vit_pe_core_tiny_patch16_384"},
    "perception_lm": {"vision_config.architecture": "vit_pe_core_tiny_patch16_384",
                      "vision_config.model_args": {"embed_dim": 192}},
    "pp_ocrv5_server_det": {"intraclass_block_config": _STRIPS, "kernel_list": [3, 2, 2],
                            "scale_factor_list": [1, 2, 4, 8]},
    "pp_ocrv6_medium_det": {"intraclass_block_config": _STRIPS},
    "pp_doclayout_v2": {"class_thresholds": [0.5] * 2, "class_order": [0, 1]},
    "qwen3_omni_moe": {"talker_config.text_config.shared_expert_intermediate_size": 64,
                       "talker_config.spatial_merge_size": 2},
    "qwen4_exp": {"text_config.indexer_budget": 4, "text_config.indexer_compress_ratio": 2,
                  "text_config.indexer_n_heads": 2, "text_config.indexer_kv_heads": 1,
                  "text_config.indexer_head_dim": 16},
    **dict.fromkeys(("sam", "sam_hq"), _SAM),
    "swin2sr": {"depths": [1, 1], "num_heads": [6, 6], "embed_dim": 24},
    "t5gemma2_encoder": {"text_config.dropout_rate": 0.0},
    "timm_wrapper": {"architecture": "resnet10t",
                     "pretrained_cfg": {"input_size": [3, 64, 64], "interpolation": "bicubic",
                                        "crop_pct": 0.9, "mean": [0.4] * 3, "std": [0.2] * 3}},
}  # fmt: skip
"""Type → values without which transformers makes no small model of it."""

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


_MULTIPLES = {"size": {"height": 112, "width": 112}, "ensure_multiple_of": 14}
_PROCESSORS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("depth_anything", "prompt_depth_anything", "tipsv2_dpt"), _MULTIPLES),
    "eomt": {"size": {"shortest_edge": 64, "longest_edge": 64}, "do_pad": True},
    "molmo2": {},
}
"""Type → how its checkpoints' image processors differ from a new one."""


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
    for narrow in (True, False) if kind not in _WIDE else (False,):
        try:
            values = transformers.AutoConfig.for_model(kind).to_dict()
            _shrink(values, narrow=narrow)
            for key, value in _REQUIRED.get(kind, {}).items():
                *path, last = key.split(".")
                reduce(getitem, path, values)[last] = value
            config = transformers.CONFIG_MAPPING[kind].from_dict(values)
            make = _maker(kind)
            with torch.device("meta"):
                module = make(config)
            if sum(tensor.numel() for tensor in module.parameters()) > TOO_LARGE:
                raise MemoryError("too large")
            torch.manual_seed(0)
            made: nn.Module = make(config).eval()
            return made
        except Exception as error:  # noqa: BLE001 - of any model's own code
            errors.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    raise ValueError(" | ".join(errors))


def _maker(kind: str) -> Callable[[Any], nn.Module]:
    """Return what makes a model of a configuration: `AutoModel`, or the type's class for a task."""
    import transformers
    from transformers.models.auto import modeling_auto

    if kind in modeling_auto.MODEL_MAPPING_NAMES:
        return transformers.AutoModel.from_config  # type: ignore[no-any-return]
    tasks = [v for k, v in vars(modeling_auto).items() if re.fullmatch("MODEL_FOR.*_NAMES", k)]
    name = next((names[kind] for names in tasks if kind in names), None)
    if name is None:
        raise ValueError("no class of transformers makes it")
    task_class = getattr(transformers, name if isinstance(name, str) else name[0])
    return task_class._from_config  # type: ignore[no-any-return]


def _shrink(values: dict[str, Any], *, narrow: bool) -> None:
    """Leave few layers and words of a configuration; with `narrow`, few channels and pixels."""
    stages = values.get("depths")
    if isinstance(stages, list) and all(isinstance(n, int) for n in stages):
        values["depths"] = [1] * len(stages)
    else:
        outputs = len(values.get("out_indices") or ())  # of a backbone
        for key in ("out_features", "out_indices", "stage_names"):
            values.pop(key, None)
        if outputs > 1:
            values["out_indices"] = [*range(1, outputs + 1)]
        few = max(2, outputs)
        for depth in {k: values[k] for k in _DEPTHS if isinstance(values.get(k), int)}.items():
            values |= {k: _ends(v, few) for k, v in values.items() if _is_per_layer(v, depth[1])}
            values[depth[0]] = min(depth[1], few)
        if isinstance(values.get("per_layer_config"), dict):
            values["per_layer_config"] = {}
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
    if narrow and "depth_coefficient" in values:  # EfficientNet's
        values |= {"depth_coefficient": 0.1, "width_coefficient": 0.5, "image_size": 64,
                   "hidden_dim": 640}  # fmt: skip
    if isinstance(values.get("mrope_section"), list):
        values["mrope_section"] = [4, 2, 2]  # half of a head
    for part in values.values():
        if isinstance(part, dict):
            _shrink(part, narrow=narrow)


def _is_per_layer(value: object, depth: int) -> bool:
    return isinstance(value, list) and len(value) == depth > 2


def _ends(values: list[Any], few: int) -> list[Any]:
    """Return the first values and the last one, which may be of another kind."""
    return [*values[: few - 1], values[-1]]


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
    processor = chosen(**_PROCESSORS.get(kind, {}))
    if kind in _PROCESSORS:
        return processor
    if isinstance(size, (list, tuple)):
        size = size[0]
    sides = getattr(processor, "size", None)
    if size is None and sides and not getattr(processor, "do_center_crop", False):
        edge, height, width = (sides.get(k) for k in ("shortest_edge", "height", "width"))
        if edge and edge > 96:
            longest = sides.get("longest_edge") and 160
            processor.size = type(sides)(shortest_edge=96, longest_edge=longest)
        elif height and min(height, width) > 256:
            processor.size = type(sides)(height=height // 128 * 32, width=width // 128 * 32)
    if isinstance(size, int):
        for key in ("size", "crop_size", "pad_size"):
            sides = getattr(processor, key, None)
            keys = [k for k in ("height", "width", "shortest_edge", "longest_edge")
                    if sides is not None and k in sides and sides[k]]  # fmt: skip
            if keys:
                setattr(processor, key, type(sides)(**dict.fromkeys(keys, size)))
        if hasattr(processor, "image_size"):
            processor.image_size = size
    return processor


def save(kind: str, folder: Path) -> tuple[nn.Module, Any]:
    """Save a small model of a type and its image processor; return both, the model's image tower.

    Raises:
        ValueError: see `small_model`.
    """
    module = small_model(kind)
    module.save_pretrained(folder)
    if kind == "timm_wrapper":
        from transformers import AutoImageProcessor

        return module, AutoImageProcessor.from_pretrained(folder)
    config = module.config
    for name in ("vision_config", "image_config"):
        config = getattr(config, name, config)
    processor = small_processor(kind, getattr(config, "image_size", None))
    if processor is not None:
        processor.save_pretrained(folder)
    return module, processor
