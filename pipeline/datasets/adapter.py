"""Adapter: convert the items of any dataset object to images and labels."""

import io
import itertools
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, SampleError, one_line
from pipeline.datasets.base import nfc
from pipeline.datasets.decoding import read_regular

IMAGE_KEYS = ("image", "img", "pixel_values", "jpg", "jpeg", "png", "webp")
LABEL_KEYS = ("label", "labels", "fine_label", "target", "cls", "class")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1

log = logging.getLogger(__name__)


def split_item(item: Any, *, image: str | None = None) -> tuple[Any, Any]:
    """Return image and label of an item: `image`, `(image, label, …)` or a mapping with both.

    The keys of a mapping are `image` or one of the usual names, and one of the labels' usual names.

    Raises:
        ConfigError: for `(image, image, …)`, as in datasets of stereo pairs.
        SampleError: for a mapping without an image.
    """
    if isinstance(item, np.void) and item.dtype.names:  # a row of a structured array
        item = {name: item[name] for name in item.dtype.names}
    if isinstance(item, Mapping):
        image_key = next((key for key in ([image] if image else IMAGE_KEYS) if key in item), None)
        if image_key is None:
            raise SampleError(f"no image in the item; its keys are {', '.join(map(str, item))}")
        return item[image_key], label_in(item)
    if isinstance(item, (tuple, list)):
        if len(item) > 2 and _are_alike(*item[:2]):
            raise ConfigError(
                "dataset: the items hold two images each; use a dataset of single images, such as "
                "(image, label)"
            )
        return (item[0], item[1] if len(item) > 1 else None) if item else (None, None)
    return item, None


def _are_alike(first: Any, second: Any) -> bool:
    """Return whether two values are images of the same kind, unlike an image and its mask."""
    if isinstance(first, Image.Image) and isinstance(second, Image.Image):
        return first.mode == second.mode
    shape = getattr(first, "shape", ())
    return len(shape) > 1 and shape == getattr(second, "shape", ()) and first.dtype == second.dtype


def label_in(item: Mapping[Any, Any]) -> Any:
    """Return the value of the first of the labels' usual keys, or None."""
    return next((item[key] for key in LABEL_KEYS if key in item), None)


def as_image(value: Any) -> bytes | Image.Image:
    """Return an image that `pipeline.datasets.decoding.decode` accepts.

    Accepts Pillow images, encoded bytes, paths, open files, `{"bytes": …, "path": …}`, and arrays
    or tensors: uint8, int64 in 0..255 or floats in 0..1, of shape `height width`,
    `height width 3` or `3 height width`.
    """
    if isinstance(value, Image.Image):
        return _undecoded(value) or value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (str, os.PathLike)):
        return read_regular(Path(value))
    if hasattr(value, "read"):
        with suppress(io.UnsupportedOperation):  # a stream; other files may have been read before
            value.seek(0)
        return bytes(value.read())
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        return as_image(value.get("bytes") or value.get("path"))
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()  # bfloat16, too
    if hasattr(value, "__array__"):  # also of xarray, Dask, JAX
        return _from_array(value)
    raise SampleError(f"an item of type {type(value).__name__} is not an image")


def _undecoded(image: Image.Image) -> bytes:
    """Return the file of an image that was opened, not decoded; empty for others, and for JPEG.

    It says what Pillow drops, e.g. of 16 bits.
    """
    file: Any = getattr(image, "fp", None)
    opened = getattr(image, "tile", ()) and not getattr(file, "closed", True)
    if not opened or image.format in ("JPEG", "MPO"):
        return b""
    if isinstance(file, io.BytesIO):
        return file.getvalue()
    if not (isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO)):
        return b""  # e.g. a member of an archive
    descriptor = file.fileno()  # not its position, which forked workers share
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _from_array(array: Array) -> Image.Image:
    if np.ma.is_masked(array):
        raise SampleError("an image has masked pixels; fill them, e.g. with array.filled(0)")
    pixels = np.asarray(array)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] not in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise SampleError(f"an array of shape {array.shape} is not an image")
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min(initial=0)), float(pixels.max(initial=0))
        if not (low >= 0 and high <= 1):
            raise SampleError(
                f"an image has float values from {low:.8g} to {high:.8g}; use floats in 0..1 "
                "(not normalised) or uint8"
            )
        pixels = np.rint(pixels * 255)
    elif pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype.type is np.int64:  # lists of integers
        low, high = int(pixels.min(initial=0)), int(pixels.max(initial=0))
        if low < 0 or high > 255:
            raise SampleError(f"an image has integers from {low} to {high}; use uint8, 0..255")
    elif pixels.dtype != np.uint8:
        raise SampleError(
            f"an array of {pixels.dtype} is not an image; use uint8 or floats in 0..1"
        )
    pixels = np.ascontiguousarray(pixels.astype(np.uint8))
    if pixels.shape[2:] == (4,):  # the decoding policy decides: opacity or infrared
        return Image.frombytes("RGBX", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
    return Image.fromarray(pixels)


def as_label(value: Any) -> tuple[int, str]:
    """Return the number or the name of a class, or (-1, '') for an unlabelled sample.

    Integers keep their value in any form: `3`, `3.0`, `" 3"`, an array or tensor of one element.
    -1, NaN, NaT and an empty string mean unlabelled. Strings, dates, times and numbers outside the
    64-bit integers are names; `numbered` assigns their numbers.
    """
    if isinstance(value, (bytes, bytearray)):
        value = value.decode("utf-8", "replace")
    if hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError):  # more than one element
            return -1, ""
    if isinstance(value, str):
        name = nfc(value.strip())  # as it is stored
        number = Decimal(name) if _NUMBER.fullmatch(name) or name.lower() == "nan" else None
    elif isinstance(value, (int, float, Decimal)):
        name, number = str(value), Decimal(value)
    elif isinstance(value, (date, time, timedelta)):
        name, number = str(value).removesuffix("NaT"), None
    else:
        return -1, ""
    if number is None:
        return -1, name
    if number.is_nan():
        return -1, ""
    if _LOWEST <= number <= _HIGHEST and number == int(number):
        return int(number), ""
    return -1, name


def numbered(values: Sequence[Any]) -> list[tuple[int, str]]:
    """Return number and name of every label; see `as_label`.

    Labels that are only names get the smallest unused numbers, in alphabetical order.
    """
    labels = [as_label(value) for value in values]
    first = next((value for value in values if value is not None), "")
    if not isinstance(first, (str, bytes, int, float)) and set(labels) == {(-1, "")}:
        log.warning(
            "labels: none is a number or a name, so samples have none; the first is %s",
            one_line(first, limit=60),
        )
    numbers = {number for number, name in labels if not name}
    names = sorted({name for number, name in labels if number == -1 and name})
    free = (number for number in itertools.count() if number not in numbers)
    number_of = dict(zip(names, free))  # noqa: B905 - `free` is infinite
    if number_of and numbers - {-1}:
        log.warning(
            "labels: numbers and names are mixed; numbers keep their value, names are numbered "
            "(%s: %d, …)", *next(iter(number_of.items())),
        )  # fmt: skip
    return [
        (number_of.get(name, number) if number == -1 else number, name) for number, name in labels
    ]
