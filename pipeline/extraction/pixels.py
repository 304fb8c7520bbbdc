"""Pixels of single samples: read, decoded and transformed, by the configured decoder."""

from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image

from pipeline.common.errors import SampleError
from pipeline.datasets.decoding import decode
from pipeline.datasets.samples import Subset
from pipeline.extraction.settings import Loader
from pipeline.models.transforms import Transform

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Source = bytes | Image.Image
_COMPARED = 8
"""Samples whose pixels are compared between decoders."""


def pixels_of(source: Source, transform: Transform, loader: Loader, device: torch.device) -> Pixels:
    """Return the pixels of a sample after the transform, uint8 `(channel, height, width)`."""
    if suits_gpu(source, transform, loader):
        from pipeline.extraction.gpu_decoder import decode_on_gpu

        with suppress(RuntimeError):  # damaged: Pillow says in what way
            return decode_on_gpu([source], transform, device)[0].numpy()
    return decoded(source, transform, loader)


def suits_gpu(source: Source, transform: Transform, loader: Loader) -> TypeGuard[bytes]:
    """Return whether a source is a JPEG file that the GPU is to decode."""
    if loader.decoder != "cuda":
        return False
    from pipeline.extraction.gpu_decoder import decodes_alike

    return decodes_alike(source, transform, loader.decoding)


def decoded(source: Source, transform: Transform, loader: Loader) -> Pixels:
    """Return what `pixels_of` returns, of sources that Pillow decodes."""
    smallest = None
    # Without a fixed size, the rounded aspect ratio of a smaller image could change the shape.
    if loader.decoder == "turbo" and transform.size is not None and transform.resize:
        smallest = max(transform.resize)
    return transform.pixels(decode(source, loader.decoding, smallest=smallest))


def decoder_difference(
    images: Subset, transform: Transform, loader: Loader, device: torch.device
) -> dict[str, float]:
    """Return how the pixels of the first readable samples differ from those of `pillow`.

    Returns:
        `samples`, and `mean` and `max` of |difference| of levels 0..255; empty for `pillow`.
    """
    if loader.decoder == "pillow":
        return {}
    reference = replace(loader, decoder="pillow")
    differences = []
    for row in range(min(len(images.samples), _COMPARED)):
        with suppress(SampleError):
            pixels, expected = (
                pixels_of(images.read(row), transform, of, device) for of in (loader, reference)
            )
            differences.append(np.abs(pixels.astype(np.int16) - expected))
    return {
        "samples": len(differences),
        "mean": float(np.mean([d.mean() for d in differences] or [0.0])),
        "max": float(max((d.max() for d in differences), default=0)),
    }


def image_shape(images: Subset, transform: Transform, loader: Loader) -> tuple[int, int, int]:
    """Return channel, height and width of the inputs, by the transform or the first sample."""
    if transform.size is not None:
        return (transform.channels, *transform.size)
    fault: SampleError | None = None
    for row in range(len(images.samples)):
        try:
            channels, height, width = decoded(images.read(row), transform, loader).shape
            return (channels, height, width)
        except SampleError as error:
            fault = fault or error
    raise SampleError(
        f"dataset: no image can be read (of {len(images.samples)}); the first: {fault}"
    )
