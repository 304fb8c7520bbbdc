"""How much a forward pass costs that stops after the last selected layer, against a whole one.

Prints one table of ratios, measured side by side in one run:

    uv run python scripts/early_stop.py
"""

from functools import partial

import torch
from measuring import medians, parser_of

from pipeline.capture.hooks import capture, forward
from pipeline.models.torchvision import TorchvisionModel

LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")


def main() -> None:
    """Measure ResNet-50, early stop after each of its stages."""
    parser = parser_of(__doc__)
    options = parser.parse_args()
    rounds, size, batch = (1, 64, 1) if options.quick else (7, 224, 8)
    model = TorchvisionModel(name="resnet50", weights=None).load().module
    images = torch.randn(batch, 3, size, size)

    def stopped(name: str) -> None:
        with capture(model, [name], stop_after=1):
            forward(model, images)

    with torch.inference_mode():
        model(images)
        ways = {name: partial(stopped, name) for name in LAYERS}
        seconds = medians({"whole": lambda: model(images), **ways}, rounds)
    print(f"resnet50, {batch} images of {size}×{size}: one layer captured, then stopped")
    for name in LAYERS:
        print(f"  {name:8} {seconds[name] / seconds['whole']:6.3f} of a whole forward pass")


if __name__ == "__main__":
    main()
