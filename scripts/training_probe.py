"""Watch layers while a model trains: every k steps, the activations of a fixed probe batch.

A small CNN learns to tell horizontal from vertical stripes. One archive and one gallery are written
per probe, through the same code as `featuremaps run`:

    uv run python scripts/training_probe.py --folder outputs/training
"""

from pathlib import Path

import numpy as np
import torch
from measuring import parser_of
from PIL import Image
from torch import nn

from pipeline.archive.reading.archive import Archive
from pipeline.capture.hooks import capture
from pipeline.capture.selector import LayerSelector
from pipeline.datasets.sequence import FromSequence
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Extraction
from pipeline.gallery.pages import THUMBNAILS, write_gallery
from pipeline.models.module import FromModule
from pipeline.models.transforms import Transform, TransformOverride
from pipeline.renderers.grid import Grid
from pipeline.renderers.overview import Overview
from pipeline.renderers.thumbnails import Thumbnails
from pipeline.rendering.render import render

SIZE = 32
PREPROCESSING = TransformOverride(resize=SIZE, crop=SIZE, mean=0.5, std=0.5)
TRANSFORM = Transform().override(PREPROCESSING)


class Net(nn.Module):
    """Two convolutions and a linear layer, for grey images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 5, padding=2)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores, `(sample, 2)`."""
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        scores: torch.Tensor = self.head(x.mean((2, 3)))
        return scores


def stripes(random: np.random.Generator) -> tuple[Image.Image, int]:
    """Return a noisy picture of stripes, and 0 for horizontal or 1 for vertical ones."""
    label = int(random.integers(2))
    wave = np.sin(np.arange(SIZE) * random.uniform(0.4, 1.2) + random.uniform(0, 6))
    picture = np.tile(wave[:, None], (1, SIZE)) * 60 + 128 + random.normal(0, 40, (SIZE, SIZE))
    pixels = np.clip(picture.T if label else picture, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels), label


def probe(model: Net, step: int, images: list[tuple[Image.Image, int]], folder: Path) -> None:
    """Write and render the activations of the probe batch at one step."""
    out = folder / f"step-{step:04d}"
    config = Extraction(
        model=FromModule(module=model, transform=PREPROCESSING),  # a copy: it does not disturb
        dataset=FromSequence(items=images),
        layers=LayerSelector(include=("conv1", "conv2")),
        archive=str(out / "archive"),
        device="cpu",
    )
    extract(config)
    renderers = {"grid": Grid(max_channels=8), "overview": Overview(), THUMBNAILS: Thumbnails()}
    with Archive.open(out / "archive") as archive:
        page = write_gallery(archive, render(archive, out, renderers))
    print(f"step {step}: {page}")


def main() -> None:
    parser = parser_of(__doc__, "four steps, two probes")
    parser.set_defaults(folder=Path("outputs/training"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=20)
    options = parser.parse_args()
    steps, every = (4, 3) if options.quick else (options.steps, options.every)
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    model = Net().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    watched = [stripes(random) for _ in range(4)]
    for step in range(steps):
        batch = [stripes(random) for _ in range(32)]
        pixels = torch.from_numpy(np.stack([TRANSFORM.pixels(image) for image, _ in batch]))
        labels = torch.tensor([label for _, label in batch])
        # In the training loop itself: any layer of any step, safe in train mode.
        with capture(model, "conv2") as activations:
            loss = nn.functional.cross_entropy(model(TRANSFORM.normalize(pixels)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0:
            alive = float((activations["conv2"] > 0).float().mean())
            print(f"step {step}: loss {float(loss.detach()):.3f}, {alive:.0%} of conv2 is positive")
            probe(model, step, watched, options.folder)


if __name__ == "__main__":
    main()
