"""What drawing costs: against the figures of the tutorials, per sample, and over workers.

Prints one table, measured in one run, rounds interleaved, medians:

    uv run python scripts/rendering.py
    uv run --with scikit-learn python scripts/rendering.py   # also its PCA

`tutorial` is one axes per feature map with a title (matplotlib, Agg, `savefig` to PNG), as the
well-known tutorials draw it. Both sides draw 64 maps with titles from the same array to PNG bytes.
Samples are drawn from an archive of resnet18's five stages (224² inputs), by every renderer of a
sample, on one core: read, draw, encode, write.
"""

import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from measuring import clock, medians, parser_of
from threadpoolctl import threadpool_limits

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Extraction
from pipeline.models.torchvision import TorchvisionModel
from pipeline.renderers.grid import Grid
from pipeline.renderers.mean_map import MeanMap
from pipeline.renderers.overview import Overview
from pipeline.renderers.pca import PCA
from pipeline.renderers.thumbnails import Thumbnails
from pipeline.rendering.drawing.picture_formats import encode
from pipeline.rendering.options import THUMBNAILS
from pipeline.rendering.projection import fit_project
from pipeline.rendering.render import RenderOptions, render
from pipeline.rendering.renderer import Renderer
from pipeline.rendering.views import SampleView, as_layer_view

LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")
CELL = 112
DPI = 100


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=100)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.samples = 1, 2
    mpl.use("Agg")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    grids = {size: measure_grid(size, options.rounds) for size in (56, 224)}
    projections = measure_pca(options.rounds)
    os.sched_setaffinity(0, cores)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        drawing = measure_samples(Path(scratch), options.samples, sorted(cores))
    if options.json:
        print(json.dumps({"grids": grids, "pca": projections, "drawing": drawing}, indent=1))
        return
    print(f"{'64 maps with titles, PNG':28} tutorial ms   ours ms   ratio   pictures (pixels)")
    for size, cost in grids.items():
        print(
            f"  maps of {size}×{size:<16} {cost['tutorial'] * 1e3:11.0f} "
            f"{cost['ours'] * 1e3:9.1f} "
            f"{cost['tutorial'] / cost['ours']:7.0f}   {cost['tutorial size']}, {cost['size']}"
        )
    print("\nPCA to three components, one thread")
    for shape, values in projections.items():
        figures = "   ".join(f"{name} {value:.3g}" for name, value in values.items())
        print(f"  {shape:16} {figures}")
    print(f"\n{'one core, five layers':28} ms per sample")
    for name, seconds in drawing["per sample"].items():
        print(f"  {name:26} {seconds * 1e3:13.1f}")
    print(f"\n{'workers':28} images/s")
    for workers, rate in drawing["images per second"].items():
        print(f"  {workers:26} {rate:8.1f}")


def measure_grid(size: int, rounds: int) -> dict[str, Any]:
    """Return seconds of both ways for 64 maps of `size` × `size`, and the pictures' sizes."""
    maps = np.random.default_rng(0).normal(size=(64, size, size)).astype(np.float32)
    view = as_layer_view("layer1", "layer1", ("channel", "height", "width"), maps)
    image = np.zeros((224, 224, 3), np.uint8)
    sample = SampleView(index=0, id="photo", label_name="", model="m", image=image, layers=[view])
    grid = Grid(max_channels=64, columns=8, tile_size=CELL)

    def ours() -> bytes:
        return encode(grid.draw_layer(view, sample), "png")

    drawn = grid.draw_layer(view, sample).rgb
    inches = (drawn.shape[1] / DPI, drawn.shape[0] / DPI)

    def tutorial() -> bytes:
        figure = plt.figure(figsize=inches, dpi=DPI)
        for i in range(64):
            axes = figure.add_subplot(8, 8, i + 1)
            axes.imshow(maps[i], cmap="viridis")
            axes.set_title(f"layer1 · ch {i}", fontsize=8)
            axes.axis("off")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        plt.close(figure)
        return buffer.getvalue()

    ours()
    return {
        **medians({"tutorial": tutorial, "ours": ours}, rounds),
        "tutorial size": f"{round(inches[0] * DPI)}×{round(inches[1] * DPI)}",
        "size": f"{drawn.shape[1]}×{drawn.shape[0]}",
    }


def measure_samples(folder: Path, samples: int, cores: list[int]) -> dict[str, Any]:
    """Return seconds per sample of each renderer and of all, and images/s over workers."""
    path = folder / "archive"
    extract(
        Extraction(
            model=TorchvisionModel(name="resnet18", weights=None),
            dataset=Synthetic(samples=samples, height=224, width=224),
            layers=LayerSelector(include=LAYERS),
            archive=str(path),
            device="cpu",
        )
    )
    every: dict[str, Renderer] = {
        "grid": Grid(), "mean_map": MeanMap(), "pca": PCA(), "overview": Overview(),
        THUMBNAILS: Thumbnails(),
    }  # fmt: skip
    sets = {name: {name: renderer} for name, renderer in every.items()} | {"all": every}
    results: dict[str, Any] = {"per sample": {}, "images per second": {}}
    few = f"0:{min(20, samples)}"
    with Archive.open(path) as archive:
        os.sched_setaffinity(0, cores[:1])
        for name, renderers in sets.items():
            options = RenderOptions(samples=(few,), num_workers=0)
            render(archive, folder / "warm", renderers, RenderOptions(samples=("0:1",)))
            took = clock(lambda r=renderers, o=options, n=name: render(archive, folder / n, r, o))  # type: ignore[misc]
            results["per sample"][name] = took / min(20, samples)
        os.sched_setaffinity(0, cores)
        for workers in (1, 2):
            options = RenderOptions(samples=("all",), num_workers=workers)
            took = clock(lambda o=options, w=workers: render(archive, folder / f"w{w}", every, o))  # type: ignore[misc]
            results["images per second"][f"{workers}"] = samples / took
    return results


def measure_pca(rounds: int) -> dict[str, dict[str, float]]:
    """Return shape → milliseconds and grey levels off a float64 SVD, of ours and scikit-learn's."""
    with threadpool_limits(1, user_api="blas"):
        return {
            f"{channels} × {side}×{side}": _pca_of(channels, side, rounds)
            for channels, side in ((64, 112), (64, 56), (128, 28), (256, 14), (512, 7), (2048, 7))
        }


def _pca_of(channels: int, side: int, rounds: int) -> dict[str, float]:
    maps = np.random.default_rng(0).normal(size=(channels, side, side)).astype(np.float32)
    for axis in (1, 2):  # neighbours are alike, as in activations
        maps += np.roll(maps, 1, axis) + np.roll(maps, 2, axis)
    vectors = np.maximum(maps, 0).reshape(channels, -1).T
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]

    def grey(scores: np.ndarray) -> np.ndarray:
        return (scores - scores.min(axis=0)) / np.ptp(scores, axis=0) * 255

    def off(scores: np.ndarray) -> float:
        exact = grey(centred @ axes.T)
        levels = grey(scores)
        return float(np.minimum(abs(levels - exact), abs(255 - levels - exact)).max())

    ways: dict[str, Callable[[], np.ndarray]] = {"ours": lambda: fit_project(vectors, 3)[1]}
    try:
        from sklearn.decomposition import PCA as Peer

        ways["scikit-learn"] = lambda: Peer(3).fit_transform(vectors)
    except ImportError:
        pass
    results: dict[str, float] = {}
    for name, work in ways.items():
        results[f"{name}, grey levels off"] = off(work())
    times = medians(ways, rounds * 3)
    return {f"{name}, ms": seconds * 1e3 for name, seconds in times.items()} | results


if __name__ == "__main__":
    main()
