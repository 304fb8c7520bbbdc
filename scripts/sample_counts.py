"""Whether an extraction's memory and time per sample grow with the dataset.

Prints one table, a column per number of samples, measured in one run; each extraction is a process
of its own:

    uv run python scripts/sample_counts.py

resnet18 (random weights) on synthetic 64×64 images, four stages stored, about 90 kB a sample.
Memory is the process's peak, and what of it the model, torch and the dummy batch do not need.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from measuring import clock, in_child, parser_of, peak

from pipeline.capture.selector import LayerSelector
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.devices import reproducible
from pipeline.extraction.extract import extract
from pipeline.extraction.plan import make_plan
from pipeline.extraction.settings import Extraction
from pipeline.models.torchvision import TorchvisionModel
from pipeline.models.transforms import TransformOverride


def main() -> None:
    parser = parser_of(__doc__, "few samples, to see that it runs")
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 5000, 20_000])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.folder)))
        return
    columns = []
    for samples in [8, 24] if options.quick else options.samples:
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            columns.append(in_child("--child", samples, "--folder", scratch))
    if options.json:
        print(json.dumps(columns, indent=1))
        return
    for name in columns[0]:
        print(f"{name:32}" + "".join(f"{column[name]:>12}" for column in columns))
    first, last = columns[0], columns[-1]
    for name in ("peak memory, MB", "ms a sample"):
        print(f"{name}, last over first: {last[name] / first[name]:.3f}")


def measure(samples: int, folder: Path) -> dict[str, float]:
    """Extract `samples` samples; return the measurements of this process."""
    small = TransformOverride(resize=(64,), crop=(64,))
    config = Extraction(
        model=TorchvisionModel(name="resnet18", weights=None, transform=small),
        dataset=Synthetic(samples=samples, height=64, width=64),
        layers=LayerSelector(include=("layer1", "layer2", "layer3", "layer4")),
        archive=str(folder / "archive"),
        device="cpu",
    )
    with reproducible(0):
        make_plan(config)
    before = peak()
    seconds = clock(lambda: extract(config))
    return {
        "samples": samples,
        "seconds": round(seconds, 1),
        "ms a sample": round(seconds / samples * 1e3, 2),
        "peak memory, MB": peak(),
        "above the dummy batch, MB": peak() - before,
    }


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    main()
