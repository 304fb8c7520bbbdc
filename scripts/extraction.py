"""What an extraction costs, against the work that nothing can avoid and against other ways.

Prints one table per model, measured side by side in one run, on generated photos:

    uv run python scripts/extraction.py
    uv run python scripts/extraction.py --peers PYTHON   # also other packages, installed there

Floors: the forward pass alone (images in memory), decoding alone, writing and syncing the same
bytes alone. Their CPU seconds over the cores are the floor that a perfect pipeline would reach.
`plain h5py` is the same loader and the same forward pass in front of a writer without checksums,
fsync or any check: the cost of safety. Rounds are interleaved; the figures are medians.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from measuring import parser_of, write_synced
from photos import write_photos
from PIL import Image

from pipeline.capture.hooks import capture
from pipeline.capture.selector import LayerSelector
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.extraction.devices import reproducible
from pipeline.extraction.extract import batch_ranges, extract, load
from pipeline.extraction.loader import Loader
from pipeline.extraction.plan import make_plan
from pipeline.extraction.replicas import ModelReplicas
from pipeline.extraction.settings import Extraction, Storage
from pipeline.models.base import ModelBundle, ModelSource
from pipeline.models.torchvision import TorchvisionModel

CASES = {
    "resnet18": ("conv1", "layer1", "layer2", "layer3", "layer4"),
    "vgg11": tuple(f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)),
}
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Loaded(ModelSource):
    """A model that is in memory: making one takes longer than some of these extractions."""

    name: str = "loaded"
    weights: str | None = None
    built: Any = field(default=None, metadata={"recorded": False})

    def build(self, seed: int) -> ModelBundle:
        built: ModelBundle = self.built
        return built


class Case:
    """One model over one folder of photos, in every way that is measured."""

    def __init__(self, name: str, photos: Path, folder: Path, batch: int) -> None:
        """Load the model and decode the photos once."""
        self.layers = CASES[name]
        self.folder = folder
        self.photos = photos
        self.config = Extraction(
            model=Loaded(built=TorchvisionModel(name=name, weights=None).build(0)),
            dataset=FlatFolder(root=str(photos)),
            layers=LayerSelector(include=self.layers),
            loader=Loader(batch_size=batch or None),
            device="cpu",
            archive=str(folder / "archive"),
        )
        with reproducible(0):
            self.plan = make_plan(self.config)
        self.half = replace(self.config, storage=Storage(dtype="float16"))
        self.images = [batch.pixels for batch in self._batches()]
        self.module = self.plan.traced.model.module
        self.bytes = sum(
            int(np.prod(layer.shape)) * 4 * len(self.plan.images.samples)
            for layer in self.plan.manifest.layers
        )

    def _batches(self) -> Iterator[Any]:
        ranges = batch_ranges(
            self.plan.manifest, range(len(self.plan.manifest.shards)), self.plan.batch_size
        )
        with load(self.plan, ranges) as loaded:
            yield from loaded

    def forward(self, layout: torch.memory_format = torch.channels_last) -> None:
        """The model over images in memory."""
        self.module.to(memory_format=layout)  # type: ignore[call-overload]
        with (
            torch.inference_mode(),
            capture(
                self.module, list(self.layers), process=lambda *_: None, stop_after=len(self.layers)
            ),
        ):
            from pipeline.capture.hooks import forward

            for pixels in self.images:
                images = self.plan.traced.model.transform.normalize(pixels)
                forward(self.module, images.contiguous(memory_format=layout))

    def decode(self) -> None:
        """Decoding and resizing, nothing else."""
        for _ in self._batches():
            pass

    def plain_h5py(self) -> None:
        """The same loader and forward pass; h5py with nothing around it."""
        with reproducible(0):
            make_plan(self.config)  # any pipeline looks at its model first
        with (
            reproducible(0),
            h5py.File(self.folder / "plain.h5", "w") as file,
            ModelReplicas(self.plan) as lanes,
        ):
            samples = len(self.plan.images.samples)
            for layer in self.plan.manifest.layers:
                file.create_dataset(layer.name, (samples, *layer.shape), dtype="float32")
            for rows in lanes.run(self._batches()):
                for name, values in rows.activations.items():
                    file[name][rows.start : rows.start + len(values)] = values
                rows.release()

    def tutorial(self) -> None:
        """One image at a time, hooks that detach, one .npy file per layer and image."""
        self.module.to(memory_format=torch.contiguous_format)
        out = self.folder / "npy"
        out.mkdir()
        figures: dict[str, torch.Tensor] = {}
        modules = dict(self.module.named_modules())
        hooks = [
            modules[name].register_forward_hook(
                lambda _m, _i, output, name=name: figures.update({name: output.detach().clone()})
            )
            for name in self.layers
        ]
        transform = self.plan.traced.model.transform
        with torch.no_grad():
            for path in sorted(self.photos.iterdir()):
                with Image.open(path) as image:
                    pixels = transform.pixels(image.convert("RGB"))
                self.module(transform.normalize(torch.as_tensor(pixels)[None]))
                for name, values in figures.items():
                    np.save(out / f"{path.stem}_{name}.npy", values[0].numpy())
        for hook in hooks:
            hook.remove()


def clock(work: Callable[[], None], folder: Path) -> tuple[float, float]:
    """Return wall and CPU seconds of `work`, from an empty folder and a quiet disk."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    os.sync()
    wall, cpu = time.perf_counter(), _cpu()
    work()
    return time.perf_counter() - wall, _cpu() - cpu


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(name: str, photos: Path, folder: Path, rounds: int, batch: int) -> dict[str, Any]:
    """Return way → median wall and CPU seconds."""
    case = Case(name, photos, folder, batch)
    ways = {
        "forward alone": case.forward,
        "forward alone, contiguous": partial(case.forward, torch.contiguous_format),
        "decode alone": case.decode,
        "write alone, float32": partial(write_synced, folder / "raw", case.bytes),
        "write alone, float16": partial(write_synced, folder / "raw", case.bytes // 2),
        "plain h5py, float32": case.plain_h5py,
        "featuremaps, float32": partial(extract, case.config),
        "featuremaps, float16": partial(extract, case.half),
        "tutorial style, float32": case.tutorial,
    }
    case.forward()
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            seconds[way].append(clock(work, folder))
    return {
        way: {
            "wall": statistics.median(wall for wall, _ in times),
            "cpu": statistics.median(cpu for _, cpu in times),
        }
        for way, times in seconds.items()
    }


def measure_peers(
    python: str, name: str, photos: Path, folder: Path, rounds: int
) -> dict[str, Any]:
    """Return way → seconds of the packages that are installed for another interpreter."""
    script = Path(__file__).with_name("peers.py")
    command = [python, str(script), name, str(photos), str(folder), str(rounds), *CASES[name]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--images", type=int, nargs="+", default=[192],
        help="how many photos; of two numbers, also what each further image takes",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=0, help="0 chooses")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter with other packages")
    options = parser.parse_args()
    if options.quick:
        options.images, options.rounds, options.models = [2], 1, ["resnet18"]
    results: dict[str, dict[int, Any]] = {name: {} for name in options.models}
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        work = Path(scratch) / "work"
        work.mkdir()
        for images in options.images:
            photos = write_photos(Path(scratch) / f"photos-{images}", images)
            for name in options.models:
                figures = measure(name, photos, work, options.rounds, options.batch)
                if options.peers:
                    figures |= measure_peers(options.peers, name, photos, work, options.rounds)
                results[name][images] = figures
                if not options.json:
                    print_table(name, figures, images, f"{images} photos")
    if options.json:
        print(json.dumps({"cores": CORES, "models": results}, indent=1))
    elif len(options.images) == 2:
        few, many = sorted(options.images)
        for name, figures in results.items():
            further = {
                way: {kind: figures[many][way][kind] - figures[few][way][kind] for kind in seconds}
                for way, seconds in figures[many].items()
            }
            print_table(name, further, many - few, f"each image between {few} and {many}")


def print_table(name: str, figures: dict[str, Any], images: int, what: str) -> None:
    """Print every way's ratio to the forward pass alone and to the floor, and its CPU time."""
    forward = figures["forward alone"]["wall"]
    print(f"\n{name}, {len(CASES[name])} layers, {what}, {CORES} cores")
    print(f"{'':32} images/s  / forward  / CPU floor  CPU / floor")
    for way, times in figures.items():
        kind = "float16" if "float16" in way else "float32"
        alone = ("forward alone", "decode alone", f"write alone, {kind}")
        floor = sum(figures[part]["cpu"] for part in alone) / CORES
        over = (
            f"{times['wall'] / floor:11.2f} {times['cpu'] / CORES / floor:12.2f}"
            if "alone" not in way
            else ""
        )
        print(f"{way:32} {images / times['wall']:8.1f} {times['wall'] / forward:10.2f} {over}")
    safety = figures["featuremaps, float32"]["wall"] / figures["plain h5py, float32"]["wall"]
    print(f"safety: featuremaps takes {safety:.2f} of plain h5py's time")


if __name__ == "__main__":
    main()
