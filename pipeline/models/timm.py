"""Models of timm, by name."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

from pipeline.capture.axes import Tokens
from pipeline.common.configured import configured
from pipeline.common.errors import ConfigError, WeightsError, known, one_line, suggestion
from pipeline.common.network import PACKAGED, library_reads
from pipeline.models.base import DEFAULT, ModelBundle, ModelSource, choose_weights_name
from pipeline.models.own_code import accepting_arguments
from pipeline.models.own_preprocessing import UnfitTransform, library_transform
from pipeline.models.transforms import Transform

log = logging.getLogger(__name__)
_HUB_PREFIXES = ("hf-hub:", "hf_hub:")


@configured
class TimmModel(ModelSource):
    """A timm model with pretrained weights (by tag), a local state dict or seeded random weights.

    The transform is the model's own, from timm's data configuration.

    Attributes:
        name: `resnet50`; with a weights tag, `resnet50.a1_in1k`; a name on the Hugging Face hub
            (`timm/resnet50.a1_in1k`, `hf-hub:owner/name`), or a local folder (`local-dir:path`).
        arguments: passed to `timm.create_model`, e.g. `{num_classes: 10, img_size: 96}`.
    """

    type_key: ClassVar[str] = "timm"
    safe_arguments: ClassVar[frozenset[str]] = frozenset(
        ("num_classes", "in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate",
         "output_stride", "out_indices", "features_only", "dynamic_img_size", "class_token",
         "reg_tokens", "patch_size", "embed_dim", "depth", "depths", "num_heads", "mlp_ratio",
         "qkv_bias", "window_size", "strict_img_size")
    )  # fmt: skip
    compares_seeds: ClassVar[bool] = True

    arguments: dict[str, Any] = field(default_factory=dict)

    def reads(self) -> dict[str, str]:
        folder = self._folder
        return super().reads() | ({} if folder is None else {"model.name": str(folder)})

    def fetches(self) -> str:
        by_name = self.weights is not None and self.weights_path is None
        hub = "/" in self.name and not self.name.startswith("timm/")
        return f"timm's {self.name}" if self._folder is None and (hub or by_name) else ""

    def build(self, seed: int) -> ModelBundle:
        import timm

        name = self._resolved()
        has_source, path = ":" in name, self.weights_path  # `hf-hub:…` and `local-dir:…`
        pretrained = self.weights is not None and path is None
        if self.weights not in (None, DEFAULT) and path is None:
            name = self._tagged(name, self.weights)
        elif pretrained and not (has_source or self.arguments or timm.is_model_pretrained(name)):
            raise WeightsError(
                f"model.weights: timm has no pretrained weights of {name}; use a path to a state "
                "dict, or null for seeded random weights"
            )
        subject, instead = "", []
        if name.startswith("hf-hub:"):  # the configuration is downloaded, too
            subject, instead = f"model.name: {name}", [f"model.name=local-dir:FOLDER or {PACKAGED}"]
        elif pretrained and not has_source:
            subject = f"model.weights: timm's weights of {name}"
        with (
            library_reads(self.name, subject, *instead),
            accepting_arguments(self.name, (TypeError, AssertionError)),
        ):
            module = timm.create_model(name, pretrained=pretrained, **self.arguments)
        if not pretrained:
            self.load_weights(module)
        transform = transform_of(module, self.arguments.get("img_size"))
        return ModelBundle(module=module, transform=transform, file=path, tokens=tokens_of(module))

    @property
    def _folder(self) -> Path | None:
        """The local folder that `name` specifies, after `local-dir:` or as a path."""
        source, colon, rest = self.name.partition(":")
        if colon and source.lower() == "local-dir":
            return Path(rest).expanduser().absolute()
        folder = Path(self.name).expanduser()
        is_saved_model = "/" in self.name and (folder / "config.json").is_file()
        return folder.absolute() if is_saved_model else None

    def _resolved(self) -> str:
        """Return the name in the form that the installed timm accepts."""
        import timm

        folder = self._folder
        if folder is not None:
            if not (folder / "config.json").is_file():
                raise ConfigError(f"model.name: {folder} has no config.json")
            return f"local-dir:{folder}"
        if self.name.lower().startswith(_HUB_PREFIXES):
            return f"hf-hub:{self.name.partition(':')[2]}"
        name = self.name.removeprefix("timm/")
        if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@.+)?", name) or (
            name != self.name and not timm.is_model(name)
        ):
            return f"hf-hub:{self.name}"
        return self._registered(name)

    def _registered(self, name: str) -> str:
        """Return the current name of a registered model, including its tag."""
        import timm
        from timm.models import get_deprecated_models

        architecture, _, tag = name.partition(".")
        deprecated = get_deprecated_models()
        if architecture in deprecated:
            current = deprecated[architecture]
            if current is None:
                raise ConfigError(f"model.name: timm has removed {architecture!r}")
            log.warning("model.name: timm now calls %s %s", architecture, current)
            architecture, _, current_tag = current.partition(".")
            tag = tag or current_tag
        if not timm.is_model(architecture):
            names = timm.list_models()
            raise ConfigError(
                f"model.name: timm has no model {self.name!r}; {suggestion(architecture, names)}"
            )
        tags = self._tags(architecture, pretrained=False)
        known(tag, ["", *tags], f"model.name: timm's {architecture} has no weights")
        return f"{architecture}.{tag}" if tag else architecture

    @staticmethod
    def _tags(architecture: str, *, pretrained: bool) -> list[str]:
        import timm

        names = timm.list_models(f"{architecture}.*", pretrained=pretrained, include_tags=True)
        return [name.partition(".")[2] for name in names]

    @staticmethod
    def _tagged(name: str, weights: str) -> str:
        architecture, _, ending = name.partition(".")
        tags = [] if ":" in name else TimmModel._tags(architecture, pretrained=True)
        tag = choose_weights_name(weights, tags, model=name)
        if ending not in ("", tag):
            raise ConfigError(
                f"model.weights: model.name selects the weights {ending}, but "
                f"model.weights selects {tag}; set only one of them"
            )
        return f"{architecture}.{tag}"


def transform_of(module: Any, img_size: int | Sequence[int] | None = None) -> Transform:
    """Return timm's evaluation transform of a model.

    Args:
        module: the model.
        img_size: its input size if it differs from its configuration: one side, or height and
            width.

    Source: timm.data.transforms_factory.transforms_imagenet_eval: the image is resized to the crop
    divided by `crop_pct`, rounded down. Other transforms (borders; crops that are not square) run
    timm's own code.
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
    try:
        steps = Transform(
            resize=(scaled[0],) if mode == "center" else scaled,
            crop=(height, width),
            interpolation=data["interpolation"],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
        )
        steps = steps.grey() if channels == 1 else steps
        if mode == "squash" or (mode == "center" and scaled[0] == scaled[1]):
            return steps
        evaluation = create_transform(**{**data, "mean": steps.mean, "std": steps.std})
        return library_transform(evaluation, steps, label=f"timm's crop_mode {mode}", settings=data)
    except (UnfitTransform, KeyError, ValueError) as error:
        raise ConfigError(
            f"model.name: timm's transform of this model cannot be used: {one_line(error)}; set "
            "model.transform.resize and model.transform.crop"
        ) from error


def tokens_of(module: Any) -> Tokens:
    """Return the prefix tokens and patch grid of a timm model, if it has them."""
    prefix = getattr(module, "num_prefix_tokens", None)
    patches = getattr(module, "patch_embed", None) or getattr(module, "stem", None)  # MLP-Mixers'
    grid = getattr(patches, "grid_size", None)
    if grid is None or len(grid) != 2:
        return Tokens(prefix=prefix)
    scales = {stage.get("reduction") for stage in getattr(module, "feature_info", [])}
    return Tokens(prefix=prefix, grid=(int(grid[0]), int(grid[1])), stages=max(1, len(scales)))
