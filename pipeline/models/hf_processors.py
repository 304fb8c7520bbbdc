"""Hugging Face image processors: a model receives the `pixel_values` of its own processor."""

import json
import logging
from functools import partial
from typing import Any

from PIL import Image

from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, one_line
from pipeline.models.own_preprocessing import LibraryTransform, UnfitTransform, library_transform
from pipeline.models.transforms import Transform, TransformOverride

log = logging.getLogger(__name__)
_REMEDY = (
    "to replace it, set model.transform.resize=[HEIGHT,WIDTH], "
    "model.transform.mean and model.transform.std"
)


def read_processor(transformers: Any, where: str) -> Any:
    """Return the image processor of a folder or hub name, or None if it has no processor."""
    from transformers.models.auto.image_processing_auto import get_image_processor_config

    try:
        return transformers.AutoImageProcessor.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, TypeError, ImportError) as error:
        if not get_image_processor_config(where):
            log.warning(
                "model.name: %s has no image processor: images are resized to the model's size and "
                "scaled to -1..1; set model.transform.… to the preprocessing of its training", where
            )  # fmt: skip
            return None
        raise ConfigError(
            f"model.name: the image processor of {where} cannot be loaded: "
            f"{one_line(error, limit=200)}"
        ) from error


def transform_of(
    processor: Any, changes: TransformOverride, *, channels: int | None = None
) -> Transform:
    """Return the transform of an image processor: the processor itself.

    Args:
        processor: any image processor of transformers.
        changes: the configuration's; if they replace every step, the processor may be unusable.
        channels: number of channels of the model's images; None means colour.
    """
    label = type(processor).__name__
    count = 1 if channels == 1 else 3
    steps = Transform(**_sizes(processor), mean=(0.0,) * count, std=(1.0,) * count)
    try:
        return library_transform(
            partial(_pixel_values, processor), steps, label=label,
            settings=json.loads(processor.to_json_string()),
        )  # fmt: skip
    except UnfitTransform as error:
        if changes.resize and changes.mean and changes.std:
            log.info("%s %s; using model.transform instead", label, error)
            return Transform(resize=None, crop=None)
        raise ConfigError(f"model.name: its {label} {error}; {_REMEDY}") from error


def cropped_to(transform: Transform, size: tuple[int, int]) -> Transform:
    """Add a crop to the model's size to a transform whose output size varies."""
    if transform.size is not None or not isinstance(transform, LibraryTransform):
        return transform
    if not transform.plain or transform.steps.resize is None:
        return transform
    log.info("%s has no crop; cropping images to the model's %d×%d pixels",
             transform.label, *size)  # fmt: skip
    return transform.override(TransformOverride(crop=size))


def _pixel_values(processor: Any, image: Image.Image) -> Array:
    outputs = processor(images=image, return_tensors="pt")
    if not hasattr(outputs, "get"):  # Idefics returns the tensor alone
        outputs = {"pixel_values": outputs}
    values = outputs.get("pixel_values")
    if values is None:
        raise UnfitTransform(f"returns {', '.join(outputs)} instead of pixel_values")
    mask = outputs.get("pixel_mask")
    if mask is not None and not bool(mask.all()):
        raise UnfitTransform("pads images, and a pixel_mask is not supported")
    if getattr(values, "ndim", 0) != 4 or len(values) != 1:
        shape = tuple(getattr(values, "shape", ()))
        raise UnfitTransform(f"returns pixel_values of shape {shape} for one image")
    array: Array = values[0].float().numpy()
    return array


def _sizes(processor: Any) -> dict[str, Any]:
    """Return the processor's plain steps; `library_transform` checks whether there are others."""

    def sizes(name: str) -> tuple[int, ...] | None:
        value: Any = getattr(processor, name, None)

        def get(key: str) -> Any:
            return value.get(key) if hasattr(value, "get") else getattr(value, key, None)

        if value is not None and get("shortest_edge") and not get("longest_edge"):
            return (int(get("shortest_edge")),)
        if value is not None and get("height") and get("width"):
            return (int(get("height")), int(get("width")))
        return None

    resample = getattr(processor, "resample", None)
    name = Image.Resampling(int(resample)).name.lower() if resample is not None else "bilinear"
    return {
        "resize": sizes("size") if getattr(processor, "do_resize", True) else None,
        "crop": sizes("crop_size") if getattr(processor, "do_center_crop", False) else None,
        "interpolation": name,
    }
