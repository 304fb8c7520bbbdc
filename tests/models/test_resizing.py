"""Very long pictures: only the crop is resized, to the pixels that torchvision would make."""

from __future__ import annotations

import resource
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from pipeline.common.errors import SampleError
from pipeline.models import resizing
from pipeline.models.transforms import Interpolation, Transform


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def whole(image: Image.Image, transform: Transform) -> np.ndarray:
    """Return what torchvision makes, which keeps the whole resized picture."""
    assert transform.resize
    assert transform.crop
    mode = InterpolationMode(transform.interpolation)
    image = F.resize(image, list(transform.resize), interpolation=mode, antialias=True)
    return np.asarray(F.center_crop(image, list(transform.crop))).transpose(2, 0, 1).astype(int)


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (4_000, 1)])
def test_a_picture_one_pixel_high_costs_no_gigabytes(size: tuple[int, int]) -> None:
    """Its centre is that of its middle hundred pixels: 1 pixel becomes 256, exactly."""
    image = noise(*size)
    middle = F.center_crop(image, [min(100, image.height), min(100, image.width)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = Transform().pixels(image)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    np.testing.assert_array_equal(pixels, whole(middle, Transform()))


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("size", [(400, 1), (1, 400), (900, 3), (31, 2000), (300, 200)])
def test_resizing_the_crop_alone_equals_cropping_the_whole(
    size: tuple[int, int], interpolation: Interpolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resizing, "_MAX_RESIZED", 0)
    for resize, crop in ((64, 56), (75, 56), (40, 64)):  # also a crop larger than the picture
        transform = Transform(resize=(resize,), crop=(crop, crop + 3), interpolation=interpolation)
        found, expected = transform.pixels(noise(*size)), whole(noise(*size), transform)
        assert found.shape == expected.shape
        if interpolation in ("nearest", "box"):  # a tie may fall to the neighbouring column or row
            assert (found != expected).mean() < 0.25
        else:
            assert abs(found - expected).max() <= 1
            assert (found != expected).mean() < 0.01


def test_a_long_picture_that_is_not_cropped_is_refused() -> None:
    with pytest.raises(SampleError, match=r"would become 1024000×256; set model\.transform\.crop"):
        Transform(crop=None).pixels(noise(4000, 1))


def test_sizes_and_centres_are_torchvisions() -> None:
    chance = np.random.default_rng(0)
    for _ in range(200):
        image = noise(*chance.integers(1, 90, 2).tolist())
        image = image if chance.random() < 0.7 else image.convert("L")
        resize, crop = (
            [None, [int(sides[0])], sides.tolist()][chance.integers(3)]
            for sides in chance.integers(1, 80, (2, 2))
        )
        interpolation = str(chance.choice(get_args(Interpolation)))
        expected = image
        if resize:
            mode = InterpolationMode(interpolation)
            expected = F.resize(expected, resize, interpolation=mode, antialias=True)
        expected = F.center_crop(expected, crop) if crop else expected
        found = resizing.resize_and_crop(image, resize, crop, interpolation)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
