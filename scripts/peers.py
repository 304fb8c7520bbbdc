"""Other packages on the same work: for `extraction.py --peers PYTHON`, in an environment of theirs.

    uv venv /tmp/peers --python 3.11
    uv pip freeze | grep -E '^torch(vision)?==' > /tmp/same  # the same torch: a fair race
    uv pip install --python /tmp/peers --override /tmp/same thingsvision torchextractor torchlens
    uv run python scripts/extraction.py --peers /tmp/peers/bin/python

Imports nothing of this project; its last line of output is way → wall and CPU seconds, as JSON.
Each package that is there reads the photos, runs the model over them and writes every layer in its
own way. thingsvision and torchextractor (as `.npy`) neither sync nor check what they wrote.
"""

import json
import os
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import transforms

BATCH = 8


def main(name: str, photos: str, folder: str, rounds: str, *layers: str) -> None:
    """Measure every package that is installed here."""
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    known: dict[str, Callable] = {
        "thingsvision": thingsvision, "torchextractor": torchextractor, "torchlens": torchlens,
    }  # fmt: skip
    ways = {f"{name}, float32": way for name, way in known.items() if find_spec(name)}
    results: dict[str, Any] = {}
    for way, work in ways.items():
        times = []
        for _ in range(int(rounds) + 1):  # the first one also imports
            model = getattr(torchvision.models, name)(weights=None).eval()
            out = Path(folder) / "peer"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            wall, cpu = time.perf_counter(), seconds_of_cpu()
            work(model, Path(photos), transform, list(layers), out)
            times.append((time.perf_counter() - wall, seconds_of_cpu() - cpu))
            shutil.rmtree(out)
        results[way] = {
            "wall": statistics.median(wall for wall, _ in times[1:]),
            "cpu": statistics.median(cpu for _, cpu in times[1:]),
        }
    print(json.dumps(results))


def thingsvision(
    model: torch.nn.Module, photos: Path, transform: Callable, layers: list[str], out: Path
) -> None:
    """Every layer in one pass over the photos, written in steps."""
    from thingsvision import get_extractor_from_model
    from thingsvision.utils.data import DataLoader, ImageDataset

    extractor = get_extractor_from_model(model=model, device="cpu", backend="pt")
    dataset = ImageDataset(
        root=str(photos), out_path=str(out / "names"), backend="pt", transforms=transform
    )
    batches = DataLoader(dataset=dataset, batch_size=BATCH, backend="pt")
    extractor.extract_features(
        batches=batches, module_names=layers, flatten_acts=False, output_type="ndarray",
        output_dir=str(out), step_size=4,
    )  # fmt: skip


def torchextractor(
    model: torch.nn.Module, photos: Path, transform: Callable, layers: list[str], out: Path
) -> None:
    """Batches of photos through the wrapped model; it leaves loading and writing to its user."""
    import torchextractor as tx

    extractor = tx.Extractor(model, layers)
    paths = sorted(photos.iterdir())
    with torch.no_grad():
        for start in range(0, len(paths), BATCH):
            images = []
            for path in paths[start : start + BATCH]:
                with Image.open(path) as image:
                    images.append(transform(image.convert("RGB")))
            _, results = extractor(torch.stack(images))
            for layer, values in results.items():
                np.save(out / f"{start:06d}_{layer}.npy", values.numpy())


def torchlens(
    model: torch.nn.Module, photos: Path, transform: Callable, layers: list[str], out: Path
) -> None:
    """Its dataset extraction, in shards of its own format; photos are loaded on demand."""
    import torchlens as tl

    def images() -> Iterator[torch.Tensor]:
        for path in sorted(photos.iterdir()):
            with Image.open(path) as image:
                yield transform(image.convert("RGB"))

    tl.extract_dataset(
        model, images(), layers=layers, batch_size=BATCH, output_dir=out / "shards", progress=False
    )


def seconds_of_cpu() -> float:
    """Return the CPU seconds of this process and its children."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(*sys.argv[1:])
