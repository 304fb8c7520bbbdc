"""A transform's pixels against those of a Hugging Face processor."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.models.transforms import Transform

SHAPES = ((64, 64), (90, 60), (40, 100), (120, 160))


def noise(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def pixel_values(processor: Any, image: Image.Image) -> torch.Tensor:
    outputs = processor(images=image, return_tensors="pt")
    values = outputs if isinstance(outputs, torch.Tensor) else outputs["pixel_values"]
    return values.float()


def levels_off(processor: Any, transform: Transform) -> float:
    """Return the largest difference from the processor's pixel_values, in levels of 8 bits."""
    worst = 0.0
    for shape in SHAPES:
        image = noise(*shape)
        expected = pixel_values(processor, image)
        actual = transform.normalize(torch.from_numpy(transform.pixels(image))[None])
        assert actual.shape == expected.shape
        # A level is worth 1 / 255 / std; std as the processor shows it, for black and white.
        black, white = (
            pixel_values(processor, Image.new("RGB", (60, 60), colour))
            for colour in ("black", "white")
        )
        level = (white - black).amax((2, 3)) / 255
        worst = max(worst, float(((actual - expected).abs() / level[..., None, None]).max()))
    return worst
