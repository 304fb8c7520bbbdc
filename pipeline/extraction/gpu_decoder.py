"""Decoding of JPEG files on a GPU, with torchvision and nvJPEG (`loader.decoder=cuda`).

Files that nvJPEG might read in another way than Pillow are left to Pillow: with an orientation,
without an end, in grey, CMYK or plain RGB.
"""

import io
import warnings
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision import io as torchvision_io
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from pipeline.common.errors import ConfigError, plural, reraised
from pipeline.datasets.decoding import Decoding
from pipeline.datasets.raster import guarded_pillow
from pipeline.models.resizing import grows_too_large
from pipeline.models.transforms import Transform

_START, _END = b"\xff\xd8", b"\xff\xd9"
_YCBCR = ([1, 2, 3], [0, 1, 2])
"""Numbers of the components of JPEG files in YCbCr; of those in RGB, the letters' codes."""
_FILTERS = ("bilinear", "bicubic")


def check_gpu_decoder(device: torch.device, transform: Transform) -> None:
    """Raise ConfigError unless JPEG files can be decoded and resized on the device."""
    if device.type != "cuda":
        raise ConfigError(
            f"loader.decoder=cuda: needs a CUDA device, the model runs on {device.type}; set "
            "device=cuda, or loader.decoder=pillow"
        )
    if transform.resize is not None and transform.interpolation not in _FILTERS:
        raise ConfigError(
            f"loader.decoder=cuda: resizes with {' or '.join(_FILTERS)} only, the model's "
            f"transform uses {transform.interpolation}; set loader.decoder=pillow"
        )
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    text, remedy = "torchvision cannot decode on this GPU", "; set loader.decoder=pillow"
    with reraised(f"loader.decoder=cuda: {text}", hint=remedy):  # built without nvJPEG; removed
        decode_on_gpu([file.getvalue()], transform, device)


def decodes_alike(source: Any, transform: Transform, policy: Decoding) -> TypeGuard[bytes]:
    """Return whether a GPU decodes a source as Pillow does, apart from rounding."""
    if not isinstance(source, bytes) or transform.channels != 3:
        return False
    if not (source.startswith(_START) and source.endswith(_END)):
        return False
    try:
        with (
            guarded_pillow(policy.max_pixels),
            Image.open(io.BytesIO(source), formats=["JPEG"]) as image,
        ):
            components: Any = image
            return (
                (image.format, image.mode) == ("JPEG", "RGB")
                and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
                and image.info.get("adobe_transform") != 0
                and [layer[0] for layer in components.layer] in _YCBCR
                and image.width * image.height <= policy.max_pixels
                and not grows_too_large(image.size, transform.resize)
            )
    except Exception:  # noqa: BLE001 - Pillow's decoding reports what is wrong
        return False


def decode_on_gpu(files: Sequence[bytes], transform: Transform, device: torch.device) -> Tensor:
    """Return the transformed pixels of JPEG files.

    Returns:
        uint8 `(file, channel, height, width)` in host memory.

    Raises:
        RuntimeError: when a file is damaged.
        ConfigError: when the device is out of memory.
    """
    contents = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    filter_ = InterpolationMode(transform.interpolation)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # since torchvision 0.29
            images: Any = torchvision_io.decode_jpeg(
                contents, mode=torchvision_io.ImageReadMode.RGB, device=device
            )
        for number, image in enumerate(images):
            if transform.resize is not None:
                image = F.resize(image, list(transform.resize), filter_, antialias=True)
            if transform.crop is not None:
                image = F.center_crop(image, list(transform.crop))
            images[number] = image
        return torch.stack(images).cpu()
    except torch.OutOfMemoryError as error:  # a RuntimeError, too
        raise ConfigError(
            f"loader.decoder=cuda: {device} is out of memory for {plural(len(files), 'file')}; "
            "set a smaller loader.batch_size, or loader.decoder=pillow"
        ) from error
