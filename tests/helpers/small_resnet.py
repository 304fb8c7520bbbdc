"""A small random ResNet to extract from."""

from pathlib import Path

from pipeline.capture.selector import LayerSelector
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.settings import Extraction
from pipeline.models.torchvision import TorchvisionModel


def small_resnet(path: Path, **changes: object) -> Extraction:
    from pipeline.models.transforms import TransformOverride

    values: dict[str, object] = {
        "model": TorchvisionModel(
            name="resnet18", weights=None, transform=TransformOverride(resize=(64,), crop=(64,))
        ),
        "dataset": Synthetic(samples=3),
        "layers": LayerSelector(include=("conv1", "layer1.0.bn1", "layer2", "fc")),
        "archive": str(path),
        "device": "cpu",
    }
    return Extraction(**(values | changes))  # type: ignore[arg-type]
