"""Views of random activations, and where their pixels are in a picture."""

import numpy as np

from pipeline.rendering.drawing.colormaps import indices, palette
from pipeline.rendering.views import LayerView, SampleView, as_layer_view


def maps(seed: int = 0, shape: tuple[int, int, int] = (6, 5, 7)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def layer(values: np.ndarray, name: str = "conv", alias: str = "") -> LayerView:
    return as_layer_view(name, alias or name, ("channel", "height", "width"), values)


def sample(*layers: LayerView) -> SampleView:
    image = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return SampleView(
        index=0, id="cat", label_name="animal", model="tiny", image=image, layers=layers
    )


def drawn(picture: np.ndarray, part: np.ndarray, off: int = 0) -> list[tuple[int, int]]:
    """Return where `part` stands in `picture`, up to `off` levels: top left corners."""
    picture, part = picture.astype(np.int16), part.astype(np.int16)
    height, width = part.shape[:2]
    rows, columns = picture.shape[0] - height + 1, picture.shape[1] - width + 1
    possible = np.ones((rows, columns), bool)
    for y, x in np.random.default_rng(0).integers(0, (height, width), (16, 2)):
        pixels = picture[y : y + rows, x : x + columns]
        possible &= (np.abs(pixels - part[y, x]) <= off).all(axis=-1)
    return [
        (y, x)
        for y, x in np.argwhere(possible).tolist()
        if (np.abs(picture[y : y + height, x : x + width] - part) <= off).all()
    ]


def in_steps(unit: np.ndarray, name: str = "viridis") -> np.ndarray:
    """Return values in 0..1 in the colours of a grid."""
    return palette(name)[indices(unit)]
