"""Models of torchvision, by name."""

import inspect
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

from pipeline.capture.axes import Tokens
from pipeline.common.configured import configured
from pipeline.common.errors import known
from pipeline.common.network import downloading
from pipeline.models.base import DEFAULT, ModelBundle, ModelSource, choose_weights_name
from pipeline.models.own_code import accepting_arguments
from pipeline.models.transforms import Transform
from pipeline.models.weights.tensor_reader import weights_only_forced

_RESCALING = ("googlenet", "inception_v3")
"""Builders that rescale their inputs only if weights are given by name."""


@configured
class TorchvisionModel(ModelSource):
    """A torchvision model with its weights enum, a local state dict or seeded random weights.

    Attributes:
        arguments: passed to the builder, e.g. `{num_classes: 10}`.
    """

    type_key: ClassVar[str] = "torchvision"
    safe_arguments: ClassVar[frozenset[str]] = frozenset(
        ("num_classes", "aux_logits", "transform_input", "dropout", "image_size", "width_mult",
         "stochastic_depth_prob", "quantize", "init_weights", "progress", "aux_loss")
    )  # fmt: skip

    arguments: dict[str, Any] = field(default_factory=dict)

    def fetches(self) -> str:
        by_name = self.weights is not None and self.weights_path is None
        return f"torchvision's weights of {self.name}" if by_name else ""

    def build(self, seed: int) -> ModelBundle:
        import torch
        from torchvision import models

        known(self.name, models.list_models(), "model.name: torchvision has no model")
        enum = models.get_model_weights(self.name)
        default = enum["DEFAULT"] if len(enum) else None  # an alias of one of the members
        path = self.weights_path
        chosen = default if self.weights == DEFAULT else None
        if self.weights is not None and path is None and chosen is None:
            valid = [member.name for member in enum]
            chosen = enum[choose_weights_name(self.weights, valid, model=self.name)]
        arguments = dict(self.arguments)
        if path is not None and self.name in _RESCALING:
            arguments.setdefault("transform_input", True)
        if chosen is None:
            # Backbones in detection and segmentation builders default to downloaded weights.
            parameters = inspect.signature(models.get_model_builder(self.name)).parameters
            backbone = {"weights_backbone": None} if "weights_backbone" in parameters else {}
            module = self._call(backbone | arguments)
        else:
            # torchvision does not pass `weights_only`.
            with downloading(f"model.weights: {chosen}"), weights_only_forced("1"):
                module = self._call(arguments | {"weights": chosen})
        self.load_weights(module)
        downloaded = chosen.url.rsplit("/", 1)[-1] if chosen is not None else ""
        cached = Path(torch.hub.get_dir()) / "checkpoints" / downloaded
        tokens = Tokens()
        if type(module).__name__ == "VisionTransformer":
            side = module.image_size // module.patch_size
            tokens = Tokens(prefix=1, grid=(side, side))
        return ModelBundle(
            module=module,
            transform=_transform_of(default if chosen is None else chosen),
            file=path or (cached if cached.is_file() else None),
            tokens=tokens,
        )

    def _call(self, arguments: Mapping[str, Any]) -> Any:
        from torchvision import models

        arguments = {"weights": None, **arguments}
        downloads = arguments["weights"] is not None  # `downloading` explains those errors
        rejections = (TypeError, ValueError, AssertionError) if downloads else Exception
        with accepting_arguments(self.name, rejections):
            return models.get_model(self.name, **arguments)


def _transform_of(weights: Any) -> Transform:
    """Return the transform of the weights' preset, whose attributes differ by task."""
    if weights is None:
        return Transform()
    preset = weights.transforms()

    def sizes(name: str) -> tuple[int, ...] | None:
        value = getattr(preset, name, None)
        if value is None:
            return None
        return (value,) if isinstance(value, int) else tuple(value)

    if not hasattr(preset, "mean"):  # detection presets only scale to 0..1
        return Transform(resize=None, crop=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    interpolation = getattr(preset, "interpolation", None)
    return Transform(
        resize=sizes("resize_size"),
        crop=sizes("crop_size"),
        interpolation=interpolation.value if interpolation else "bilinear",
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
