"""Generated JPEG photos for the benchmarks: smooth shapes with some noise."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> Path:
    """Write `count` different JPEG files of `size` (width, height) and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        path = folder / f"{i:06d}.jpg"
        if not path.exists():
            chance = np.random.default_rng(i)
            coarse = Image.fromarray(chance.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            picture = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
            picture += chance.normal(0, 6, picture.shape)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return folder
