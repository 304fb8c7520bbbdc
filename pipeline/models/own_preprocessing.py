"""Library transforms, used when no plain resize and crop gives the same pixels.

The library returns float pixels; archives store uint8. Both are equivalent if one affine map per
channel leads from 8-bit levels to the library's values. This is checked when the model is loaded,
on noise of several aspect ratios, and again for every image.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from pipeline.common.arrays import Array
from pipeline.common.configured import configured, to_dict
from pipeline.common.errors import ConfigError, SampleError, one_line, plural
from pipeline.models.resizing import grows_too_large
from pipeline.models.transforms import Transform, TransformOverride

_SHAPES = ((240, 320), (400, 240), (200, 480))
_ROUNDING = 0.501  # of 255 levels: largest change by rounding a float to uint8


class UnfitTransform(ValueError):
    """The reason why a library's transform cannot be used."""


@configured
class LibraryTransform(Transform):
    """A library's transform; `mean`, `std` and `bgr` are its own, or an override's.

    Attributes:
        function: maps an image to the model's input, picklable: `(channel, height, width)`.
        label: name in messages.
        settings: entries for the manifest.
        steps: the library's sizes as plain steps, with its own `mean`, `std` and `bgr`.
        plain: whether `steps` gives the same pixels up to rounding (of the resize, of an odd crop
            offset), so that single sizes can be overridden.
        fixed_size: see `size`.
    """

    function: Callable[[Image.Image], Array]
    label: str
    settings: dict[str, Any]
    steps: Transform
    plain: bool = False
    fixed_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of all outputs, or None if they depend on the image."""
        return self.fixed_size

    def override(self, changes: TransformOverride) -> Transform:
        """Return this transform with other levels, or plain steps if `changes` sets a size."""
        channels = self.channels if changes.mean is None else len(changes.mean)
        if not changes.geometry and channels == self.channels:
            return Transform.override(self, changes)
        if self.plain:
            return self.steps.override(changes)
        if changes.resize is None:
            raise ConfigError(
                f"model.transform: {self.label} has its own preprocessing steps; to replace "
                "them, set model.transform.resize too"
            )
        return replace(self.steps, crop=None).override(changes)

    def pixels(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the model's view of `image`, uint8 of `channel height width`."""
        if grows_too_large(image.size, self.steps.resize):
            if self.plain:
                return self.steps.pixels(image)
            raise SampleError(f"{image.width}×{image.height} pixels are too large for {self.label}")
        try:
            return _to_uint8(_call(self.function, image, self.channels), self.steps)
        except UnfitTransform as error:
            raise SampleError(f"{self.label} {error}") from error

    def describe(self) -> dict[str, Any]:
        """Return the transform as plain values for the manifest."""
        levels = {"mean": list(self.mean), "std": list(self.std), "bgr": self.bgr}
        return {"library": self.label, "settings": to_dict(self.settings), **levels}


def library_transform(
    function: Callable[[Image.Image], Array],
    steps: Transform,
    *,
    label: str,
    settings: dict[str, Any],
) -> LibraryTransform:
    """Measure a library's transform and check that 8-bit pixels can represent its output.

    Args:
        function: see `LibraryTransform`.
        steps: plain steps that may give the same pixels; the length of `mean` is the number of
            channels.
        label, settings: see `LibraryTransform`.

    Raises:
        UnfitTransform: when the transform cannot be used.
    """
    levels = _levels(function, steps.channels)
    steps = replace(steps, **levels)
    plain, sizes = True, set()
    random = np.random.default_rng(0)
    for height, width in _SHAPES:
        noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        pixels = _to_uint8(_call(function, image, steps.channels), steps)
        sizes.add(pixels.shape[1:])
        if plain:
            expected = steps.pixels(image)
            plain = expected.shape == pixels.shape and _same_steps(expected, pixels)
    return LibraryTransform(
        function=function, label=label, settings=settings, steps=steps, plain=plain, **levels,
        fixed_size=sizes.pop() if len(sizes) == 1 else None,
    )  # fmt: skip


def _levels(function: Callable[[Image.Image], Array], channels: int) -> dict[str, Any]:
    """Measure `mean`, `std` and `bgr` on uniform images."""
    black, white, red = (
        _call(function, Image.new("RGB", (240, 240), colour), channels)
        for colour in ("black", "white", "red")
    )
    row, column = divmod(int(np.argmax((white - black).min(0))), white.shape[2])  # no padding
    low, high = black[:, row, column], white[:, row, column]
    if not (high > low).all():
        raise UnfitTransform("does not return larger values for white than for black")
    std = 1 / (high.astype(np.float64) - low)
    bgr = channels == 3 and int(np.argmax((red[:, row, column] - low) * std)) == 2
    return {"mean": _neat(-low * std), "std": _neat(std), "bgr": bgr}


def _call(function: Callable[[Image.Image], Array], image: Image.Image, channels: int) -> Array:
    try:
        values = np.asarray(
            function(image.convert("L" if channels == 1 else "RGB")), dtype=np.float32
        )
    except UnfitTransform:
        raise
    except Exception as error:
        raise UnfitTransform(
            f"fails: {one_line(f'{type(error).__name__}: {error}', limit=200)}"
        ) from error
    if values.ndim != 3 or values.shape[0] != channels:
        raise UnfitTransform(
            f"returns shape {values.shape}, not one image of {plural(channels, 'channel')} "
            "(channel, height, width)"
        )
    return values


def _to_uint8(values: Array, steps: Transform) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the RGB pixels from which `steps.normalize` computes `values`."""
    mean, std = (np.array(v, np.float32)[:, None, None] * 255 for v in (steps.mean, steps.std))
    levels = values * std + mean
    pixels = np.clip(np.rint(levels), 0, 255)
    if not np.abs(levels - pixels).max() <= _ROUNDING:
        raise UnfitTransform("returns values that 8-bit pixels cannot represent")
    return np.ascontiguousarray(pixels[::-1] if steps.bgr else pixels, dtype=np.uint8)


def _same_steps(a: Array, b: Array) -> bool:
    """Return whether noise images match up to rounding and a crop shift of one pixel."""
    inner, (height, width) = a[:, 1:-1, 1:-1].astype(np.int16), a.shape[1:]
    return any(
        np.abs(inner - b[:, y : height - 2 + y, x : width - 2 + x]).mean() < 1
        for y in range(3)
        for x in range(3)
    )


def _neat(values: Array) -> tuple[float, ...]:
    """Return values with the fewest digits that float32 precision requires."""

    def neat(value: float) -> float:
        rounded = (round(value, digits) for digits in range(2, 12))
        return next((r for r in rounded if abs(r - value) <= 2e-7 * abs(value)), value) + 0.0

    return tuple(neat(float(value)) for value in values)
