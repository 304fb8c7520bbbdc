"""How much a forward pass costs that stops after the last selected layer, against a whole one.

Prints one table of ratios, measured side by side in one run:

    uv run python scripts/early_stop.py
"""

import argparse
import statistics
import time

import torch

from pipeline.capture.hooks import capture, forward
from pipeline.models.torchvision import TorchvisionModel

LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")


def main() -> None:
    """Measure ResNet-50, early stop after each of its stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it runs")
    parser.add_argument("--folder", help="not used; every script takes it")
    options = parser.parse_args()
    rounds, size, batch = (1, 64, 1) if options.quick else (7, 224, 8)
    model = TorchvisionModel(name="resnet50", weights=None).load().module
    images = torch.randn(batch, 3, size, size)
    seconds: dict[str, list[float]] = {name: [] for name in ("whole", *LAYERS)}
    with torch.inference_mode():
        model(images)
        for _ in range(rounds):
            start = time.perf_counter()
            model(images)
            seconds["whole"].append(time.perf_counter() - start)
            for name in LAYERS:
                with capture(model, [name], stop_after=1):
                    start = time.perf_counter()
                    forward(model, images)
                    seconds[name].append(time.perf_counter() - start)
    whole = statistics.median(seconds["whole"])
    print(f"resnet50, {batch} images of {size}×{size}: one layer captured, then stopped")
    for name in LAYERS:
        print(f"  {name:8} {statistics.median(seconds[name]) / whole:6.3f} of a whole forward pass")


if __name__ == "__main__":
    main()
