"""Any model of timm, by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.foundation.configured import configured
from pipeline.foundation.errors import ConfigError, one_line, suggestion
from pipeline.foundation.network import downloading, hub_answers_at_once
from pipeline.inputs.library_transform import UnfitTransform, library_transform
from pipeline.inputs.transforms import Interpolation, Transform
from pipeline.layers.axes import Tokens
from pipeline.models.base import DEFAULT, Built, ModelSource, choose_weights_name

if TYPE_CHECKING:
    from torch import nn


@configured
class TimmModel(ModelSource):
    """A timm model with pretrained weights (by tag), a local state dict or seeded random weights.

    The transform is the model's own, from timm's data configuration.

    Attributes:
        arguments: passed to `timm.create_model`, e.g. `{num_classes: 10, img_size: 96}`.
        fused_attention: `false` computes attention step by step, so that its weights
            (`blocks.*.attn.attn_drop`: head, query, key) can be kept.
    """

    kind: ClassVar[str] = "timm"
    safe_arguments: ClassVar[frozenset[str]] = frozenset(
        ("num_classes", "in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate",
         "output_stride", "out_indices", "features_only", "dynamic_img_size", "class_token",
         "reg_tokens", "patch_size", "embed_dim", "depth", "depths", "num_heads", "mlp_ratio",
         "qkv_bias", "window_size", "strict_img_size")
    )  # fmt: skip

    arguments: dict[str, Any] = field(default_factory=dict)
    fused_attention: bool = True

    def fetches(self) -> str:
        """See `ModelSource.fetches`."""
        hub = self.name.startswith(("hf_hub:", "hf-hub:"))
        named = self.weights is not None and self.weights_path is None
        return f"timm's {self.name}" if hub or named else ""

    def build(self, seed: int) -> Built:
        """See `ModelSource.build`."""
        import timm

        known = timm.list_models()
        if not self.name.startswith(("hf_hub:", "hf-hub:")) and self.name not in known:
            raise ConfigError(
                f"model.name: timm has no model {self.name!r}; {suggestion(self.name, known)}"
            )
        path = self.weights_path
        if self.weights is None or path is not None:
            module = self._create(self.name, pretrained=False)
            self.load_weights(module)
        else:
            with (
                downloading(f"model.weights: timm's weights of {self.name}"),
                hub_answers_at_once(),
            ):
                module = self._create(self._tagged(), pretrained=True)
        for part in module.modules() if not self.fused_attention else ():
            if hasattr(part, "fused_attn"):
                setattr(part, "fused_attn", False)  # noqa: B010 - no module declares it
        transform = transform_of(module, self.arguments.get("img_size"))
        return Built(module=module, transform=transform, file=path, tokens=tokens_of(module))

    def _create(self, name: str, *, pretrained: bool) -> nn.Module:
        import timm

        try:
            module: nn.Module = timm.create_model(name, pretrained=pretrained, **self.arguments)
        except (TypeError, AssertionError) as error:
            raise ConfigError(
                f"model.arguments: {self.name} refused them: {one_line(error)}"
            ) from error
        return module

    def _tagged(self) -> str:
        import timm

        if self.weights is None or self.weights == DEFAULT:
            return self.name
        names = timm.list_models(f"{self.name}.*", pretrained=True)
        tags = [name.partition(".")[2] for name in names]
        return f"{self.name}.{choose_weights_name(self.weights, tags, model=self.name)}"


def transform_of(module: Any, img_size: int | Sequence[int] | None = None) -> Transform:
    """Return the evaluation transform that timm would make for a model.

    Args:
        module: the model.
        img_size: that it was made for, where that is not its configuration's; a side, or height
            and width.

    Source: timm.data.transforms_factory.transforms_imagenet_eval: the image is resized to the
    crop divided by `crop_pct`, rounded down. What is no plain resize (borders; crops that are not
    square) is left to timm.

    Raises:
        ConfigError: when timm itself cannot make it.
    """
    from timm.data import create_transform, resolve_model_data_config

    arguments = {}
    if img_size is not None:
        sides = [img_size, img_size] if isinstance(img_size, int) else list(img_size)
        arguments = {"input_size": [module.pretrained_cfg["input_size"][0], *sides]}
    data = resolve_model_data_config(module, arguments)
    channels, height, width = data["input_size"]
    scaled = tuple(math.floor(size / data["crop_pct"]) for size in (height, width))
    mode = data.get("crop_mode") or "center"
    mean, std = tuple(data["mean"]), tuple(data["std"])
    if channels == 1 and len(mean) == 3:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    try:
        steps = Transform(
            resize=(scaled[0],) if mode == "center" else scaled,
            crop=(height, width),
            interpolation=Interpolation(data["interpolation"]),
            mean=mean,
            std=std,
        )
        if mode == "squash" or (mode == "center" and scaled[0] == scaled[1]):
            return steps
        own = create_transform(**{**data, "mean": mean, "std": std})  # not for training
        return library_transform(own, steps, label=f"timm's crop_mode {mode}", settings=data)
    except (UnfitTransform, KeyError, ValueError) as error:
        raise ConfigError(
            f"model.name: timm's transform of this model cannot be used: {one_line(error)}; set "
            "model.transform.resize and model.transform.crop"
        ) from error


def tokens_of(module: Any) -> Tokens:
    """Read prefix tokens and patch grid off a timm model, as far as it has them."""
    prefix = getattr(module, "num_prefix_tokens", None)
    patches = getattr(module, "patch_embed", None) or getattr(module, "stem", None)  # MLP-Mixers'
    grid = getattr(patches, "grid_size", None)
    if grid is None or len(grid) != 2:
        return Tokens(prefix=prefix)
    scales = {stage.get("reduction") for stage in getattr(module, "feature_info", [])}
    return Tokens(prefix=prefix, grid=(int(grid[0]), int(grid[1])), stages=max(1, len(scales)))
