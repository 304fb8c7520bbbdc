"""Attention with structure: a small ViT learns which photo is pasted somewhere on a texture.

It trains for minutes on the packaged photos; then its attention over composites that it has not
seen is archived and drawn, through the same code as `featuremaps run`:

    uv run python scripts/attention_pictures.py --folder outputs/attending
"""

import time
from pathlib import Path

import numpy as np
import timm
import torch
from measuring import parser_of
from PIL import Image
from skimage import data
from torch.nn import functional as F

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Extraction
from pipeline.gallery.pages import write_gallery
from pipeline.models.timm import TimmModel
from pipeline.renderers.attention import AttentionMaps
from pipeline.renderers.thumbnails import Thumbnails
from pipeline.rendering.render import render

MODEL, SIDE = "vit_tiny_patch16_224", 224
SMALL = {"embed_dim": 96, "depth": 4, "num_heads": 4, "num_classes": 4, "reg_tokens": 4}
PASTED = ("astronaut", "chelsea", "coffee", "rocket")
TEXTURES = ("camera", "brick", "grass", "gravel")
TRAINING_SECONDS = 300
Random = np.random.Generator


def photos() -> dict[str, Image.Image]:
    """Return name → photo, its shorter side 300 pixels."""
    found = {}
    for name in PASTED + TEXTURES:
        photo = Image.fromarray(getattr(data, name)()).convert("RGB")
        scale = 300 / min(photo.size)
        found[name] = photo.resize((round(photo.width * scale), round(photo.height * scale)))
    return found


def crop(photo: Image.Image, side: int, random: Random) -> Image.Image:
    """Return a random square of a photo, resized."""
    size = int(random.integers(140, 220))
    left, top = (int(random.integers(length - size + 1)) for length in photo.size)
    return photo.crop((left, top, left + size, top + size)).resize((side, side))


def composite(pasted: Image.Image, texture: Image.Image, random: Random) -> Image.Image:
    """Return a part of a photo at a random place on a texture."""
    side = int(random.integers(80, 140))
    picture = crop(texture, SIDE, random)
    left, top = random.integers(0, SIDE - side, 2).tolist()
    picture.paste(crop(pasted, side, random), (left, top))
    return picture


def train(path: Path, seconds: float) -> None:
    """Write the state dict of the trained ViT."""
    torch.manual_seed(0)
    random, images = np.random.default_rng(0), photos()
    model = timm.create_model(MODEL, **SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    start, step = time.monotonic(), 0
    while (share := (time.monotonic() - start) / seconds) < 1:
        labels = torch.from_numpy(random.integers(0, len(PASTED), 32))
        pictures = [
            composite(images[PASTED[label]], images[random.choice(TEXTURES)], random)
            for label in labels
        ]
        batch = np.stack([np.asarray(picture) for picture in pictures])
        scores = model(torch.from_numpy(batch).permute(0, 3, 1, 2) / 127.5 - 1)
        loss = F.cross_entropy(scores, labels)
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, step / 30) * (1 - share)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    torch.save(model.state_dict(), path)


def main() -> None:
    """Train, extract and render."""
    arguments = parser_of(__doc__).parse_args()
    folder = arguments.folder or Path("outputs/attending")
    inputs = folder / "images"
    inputs.mkdir(parents=True, exist_ok=True)
    random, images = np.random.default_rng(1), photos()
    for name in PASTED:
        crop(images[name], SIDE, random).save(inputs / f"{name}.png")
        for texture in TEXTURES[1:3]:
            picture = composite(images[name], images[texture], random)
            picture.save(inputs / f"{name}-on-{texture}.png")
    weights = folder / "vit.pth"
    if not weights.exists():
        train(weights, 2 if arguments.quick else TRAINING_SECONDS)
    made = extract(Extraction(
        model=TimmModel(name=MODEL, weights=str(weights), arguments=SMALL),
        dataset=FlatFolder(root=str(inputs)),
        layers=LayerSelector(include=("*@attention", "*@rollout")),
        archive=str(folder / "archive"),
    ))  # fmt: skip
    with Archive.open(made.archive) as archive:
        renderers = {"attention": AttentionMaps(), "thumbnails": Thumbnails()}
        print(write_gallery(archive, render(archive, folder, renderers)))


if __name__ == "__main__":
    main()
