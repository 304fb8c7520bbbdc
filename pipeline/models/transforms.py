"""Preprocessing: convert a decoded image to pixels, and pixels to the model's input.

Two steps let the archive store exactly the pixels that the model receives: `Transform.pixels`
resizes and crops in the DataLoader workers and returns uint8; `Transform.normalize` runs on the
device and returns float32. Together they equal the evaluation transforms of torchvision and timm
for Pillow images.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import AfterValidator

from pipeline.common.configured import Natural, Several, configured, to_dict
from pipeline.common.errors import ConfigError
from pipeline.models.resizing import resize_and_crop

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
"""Pillow's resampling filters, under the names that torchvision and timm use."""


def _one_or_two(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if len(sizes) not in (1, 2) or not 1 <= min(sizes) <= max(sizes) <= 1_000_000:
        raise ValueError(
            f"takes one positive size or [height, width], up to 1,000,000, got {list(sizes)}"
        )
    return sizes


def _one_or_three(levels: tuple[float, ...]) -> tuple[float, ...]:
    if len(levels) not in (1, 3) or not all(np.isfinite(levels)):
        raise ValueError(f"takes 1 or 3 finite numbers, got {list(levels)}")
    return levels


def _positive(levels: tuple[float, ...]) -> tuple[float, ...]:
    if min(levels) <= 0:
        raise ValueError(f"must be positive, got {list(levels)}")
    return levels


Sizes = Annotated[tuple[Natural, ...], Several, AfterValidator(_one_or_two)]
Levels = Annotated[tuple[float, ...], Several, AfterValidator(_one_or_three)]
Stds = Annotated[Levels, AfterValidator(_positive)]


@configured
class TransformOverride:
    """Changes to the transform of the weights; None keeps a value.

    Attributes:
        resize: one size for the shorter side, which keeps the aspect ratio, or `[height, width]`.
        crop: one size for a square centre crop, or `[height, width]`.
        interpolation: Pillow's resampling filter.
        mean, std: per channel of the model's input, for pixels scaled to 0..1; one number each for
            grey images.
        bgr: whether the model expects the channel order blue, green, red, as in OpenCV and Caffe.
    """

    resize: Sizes | None = None
    crop: Sizes | None = None
    interpolation: Interpolation | None = None
    mean: Levels | None = None
    std: Stds | None = None
    bgr: bool | None = None

    @property
    def geometry(self) -> bool:
        """Whether sizes or interpolation change."""
        return (self.resize, self.crop, self.interpolation) != (None, None, None)


@configured
class Transform:
    """Resize, centre crop and normalisation of one model (fields as in `TransformOverride`)."""

    resize: Sizes | None = (256,)
    crop: Sizes | None = (224,)
    interpolation: Interpolation = "bilinear"
    mean: Levels = IMAGENET_MEAN
    std: Stds = IMAGENET_STD
    bgr: bool = False

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has length {len(self.mean)}, std has length {len(self.std)}; set both"
            )
        if self.bgr and self.channels != 3:
            raise ValueError(f"bgr needs 3 channels, mean has {self.channels}; set bgr=false")

    def override(self, changes: TransformOverride) -> Transform:
        """Return this transform with the fields that `changes` sets."""
        changed = {name: value for name, value in vars(changes).items() if value is not None}
        try:
            return replace(self, **changed)
        except ConfigError as error:
            text = str(error).removeprefix("Transform: ")
            raise ConfigError(f"model.transform: {text}") from None

    def grey(self) -> Transform:
        """Return this transform for grey images, with averaged mean and std."""
        mean, std = (sum(levels) / len(levels) for levels in (self.mean, self.std))
        return replace(self, mean=(mean,), std=(std,))

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of all outputs, or None if they depend on the image."""
        for sizes in (self.crop, self.resize):
            if sizes is not None and (sizes is self.crop or len(sizes) == 2):
                return (sizes[0], sizes[-1])
        return None

    @property
    def channels(self) -> int:
        """Number of channels: 3 for colour, 1 for grey images."""
        return len(self.mean)

    def pixels(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the resized and cropped pixels of `image`.

        Args:
            image: in mode RGB.

        Returns:
            uint8 array, `channel height width`, 0..255.
        """
        image = image.convert("L" if self.channels == 1 else "RGB")
        image = resize_and_crop(image, self.resize, self.crop, self.interpolation)
        array = np.asarray(image, dtype=np.uint8)
        return np.ascontiguousarray(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return `(pixels / 255 - mean) / std`, with torchvision's arithmetic, blue first if `bgr`.

        Args:
            pixels: uint8, `sample channel height width`, on any device.

        Returns:
            float32 of the same shape on the same device.
        """
        import torch

        shape = (-1, 1, 1)
        if self.bgr:
            pixels = pixels.flip(1)
        if pixels.device.type == "cpu":
            # The same arithmetic in one thread (torch's threads would wait for busy cores), one
            # image at a time, so that it stays in the cache between the steps.
            means, stds = (np.array(v, np.float32).reshape(shape) for v in (self.mean, self.std))
            normalized = np.empty(pixels.shape, np.float32)
            for image, raw in zip(normalized, pixels.numpy(), strict=True):
                np.divide(raw, np.float32(255), out=image, dtype=np.float32)
                np.subtract(image, means, out=image)
                np.divide(image, stds, out=image)
            return torch.from_numpy(normalized)
        mean, std = (_levels(levels, pixels.device).view(shape) for levels in (self.mean, self.std))
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def describe(self) -> dict[str, Any]:
        """Return the transform as plain values for the manifest."""
        return dict(to_dict(self))


@cache  # copying them again would wait for all earlier work of a GPU
def _levels(levels: tuple[float, ...], device: torch.device) -> torch.Tensor:
    import torch

    return torch.tensor(levels, dtype=torch.float32, device=device)
