"""A Hugging Face model is fed the pixel_values of its own image processor, or refused by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ConfigError, SampleError
from pipeline.datasets.sequence import FromSequence
from pipeline.extraction.extract import extract
from pipeline.models.hf_processors import transform_of
from pipeline.models.transformers import TransformersModel
from pipeline.models.transforms import Transform, TransformOverride
from pipeline.renderers.filters import Filters, as_rgb
from tests.conftest import tiny_extraction
from tests.helpers.processor_pixels import levels_off, noise
from tests.helpers.views_and_pixels import drawn

transformers = pytest.importorskip("transformers")


SMALL = {"height": 48, "width": 48}
EDGE = {"shortest_edge": 48}
BOUND = {"shortest_edge": 48, "longest_edge": 64}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ConvNext", {"size": EDGE, "crop_pct": 0.875}),
    ("ConvNext", {"size": {"shortest_edge": 384}}),
    ("MobileViT", {"size": EDGE, "crop_size": SMALL}),
    ("ViT", {"size": SMALL, "do_rescale": False}),
    ("ViT", {"size": SMALL, "do_rescale": False, "do_normalize": False}),
    ("ViT", {"size": SMALL, "rescale_factor": 1 / 127.5}),
    ("ViT", {"size": {"height": 32, "width": 48}, "image_std": [0.1, 0.2, 0.3]}),
    ("ViT", {"do_resize": False}),
    ("EfficientNet", {"size": SMALL, "rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ("Levit", {"size": EDGE, "crop_size": SMALL}),
    ("PoolFormer", {"size": EDGE, "crop_size": SMALL, "crop_pct": 0.9}),
    ("DPT", {"size": SMALL, "keep_aspect_ratio": True, "ensure_multiple_of": 16}),
    ("Detr", {"size": BOUND}),
    ("Vilt", {"size": EDGE}),
    ("CLIP", {"size": {"shortest_edge": 40}, "crop_size": SMALL}),
    ("Siglip", {"size": SMALL}),
    ("DINOv3ViT", {"size": SMALL}),
    ("Sam", {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_the_pixels_equal_the_processors(name: str, settings: dict[str, Any]) -> None:
    processor = getattr(transformers, f"{name}ImageProcessor")(**settings)
    transform = transform_of(processor, TransformOverride())
    assert levels_off(processor, pickle.loads(pickle.dumps(transform))) <= 0.51
    recorded = json.loads(json.dumps(transform.describe()))
    assert recorded["library"] == f"{name}ImageProcessor"
    assert recorded["settings"]["do_rescale"] is processor.do_rescale


@pytest.mark.broad
def test_every_processor_of_transformers_gives_its_pixels_or_is_refused() -> None:
    from transformers.models.auto.image_processing_auto import (
        IMAGE_PROCESSOR_MAPPING_NAMES as NAMES,
    )
    from transformers.models.auto.image_processing_auto import (
        get_image_processor_class_from_name as named,
    )

    used, refused, tiled = [], [], []
    for name in sorted({name for names in NAMES.values() for name in names.values() if name}):
        if name == "TimmWrapperImageProcessor":  # takes a timm model's configuration
            continue
        processor = named(name)()
        try:
            transform = transform_of(processor, TransformOverride())
        except ConfigError as error:
            refused.append((name, str(error)))
            continue
        try:
            off = levels_off(processor, transform)
        except SampleError as error:
            tiled.append((name, str(error)))
            continue
        assert off <= 0.51, (name, off)
        used.append(name)
    for name, text in refused:
        assert f"its {name} " in text
        assert "set model.transform.resize=[HEIGHT,WIDTH]" in text
    for name, text in tiled:  # as many tiles as a photo's aspect asks for
        assert f"{name} returns pixel_values of shape" in text
    assert len(used) > 120
    assert {"ViTImageProcessor", "SamImageProcessor", "DetrImageProcessor"} <= {*used}
    assert {"Siglip2ImageProcessor", "ImageGPTImageProcessor"} <= {*dict(refused)}


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("ImageGPT", {"clusters": [[0, 0, 0]]}, "returns input_ids instead of pixel_values"),
        ("Siglip2", {}, "returns pixel_values of shape"),
        ("VideoMAE", {}, "returns pixel_values of shape"),
        ("VitPose", {}, "fails: TypeError: .*boxes"),
        (
            "Detr",
            {"size": BOUND, "pad_size": {"height": 99, "width": 99}},
            "a pixel_mask is not supported",
        ),
    ],
)
def test_what_is_no_picture_is_refused_by_name(
    name: str, settings: dict[str, Any], reason: str
) -> None:
    processor = getattr(transformers, f"{name}ImageProcessor")(**settings)
    with pytest.raises(ConfigError, match=rf"its {name}ImageProcessor .*{reason}.*set model\."):
        transform_of(processor, TransformOverride())
    given = TransformOverride(resize=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert transform_of(processor, given).override(given).size == (32, 32)


def test_overrides_replace_the_processors_steps_or_levels() -> None:
    clip = transform_of(
        transformers.CLIPImageProcessor(size=EDGE, crop_size=SMALL), TransformOverride()
    )
    larger = clip.override(TransformOverride(resize=(96,)))
    assert (larger.resize, larger.crop, larger.size) == ((96,), (48, 48), (48, 48))
    np.testing.assert_allclose(larger.mean, (0.48145466, 0.4578275, 0.40821073), rtol=1e-6)
    image = noise(90, 60)
    other = clip.override(TransformOverride(mean=(0.0,) * 3, std=(1.0,) * 3))
    np.testing.assert_array_equal(other.pixels(image), clip.pixels(image))
    scaled = other.normalize(torch.from_numpy(clip.pixels(image))[None])
    np.testing.assert_allclose(scaled[0], clip.pixels(image) / np.float32(255))
    own_steps = transform_of(transformers.ConvNextImageProcessor(size=EDGE), TransformOverride())
    with pytest.raises(ConfigError, match=r"ConvNextImageProcessor .*model\.transform\.resize too"):
        own_steps.override(TransformOverride(crop=(40,)))
    assert own_steps.override(TransformOverride(resize=(40, 30))).size == (40, 30)
    with pytest.raises(ConfigError, match=r"set model\.transform\.resize too"):
        own_steps.override(TransformOverride(mean=(0.5,), std=(0.5,)))


def test_a_very_long_picture_costs_no_gigabytes() -> None:
    clip = transform_of(
        transformers.CLIPImageProcessor(size={"shortest_edge": 224}), TransformOverride()
    )
    steps = Transform(resize=(224,), crop=(224,), interpolation="bicubic")
    np.testing.assert_array_equal(clip.pixels(noise(1, 4000)), steps.pixels(noise(1, 4000)))


def test_grey_models_take_grey_pixels() -> None:
    processor = transformers.ViTImageProcessor(size=SMALL, image_mean=[0.1], image_std=[0.3])
    transform = transform_of(processor, TransformOverride(), channels=1)
    assert (transform.mean, transform.std) == ((0.1,), (0.3,))
    image = noise(90, 60)
    expected = processor(images=image.convert("L"), return_tensors="pt")["pixel_values"]
    found = transform.normalize(torch.from_numpy(transform.pixels(image))[None])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_model_that_takes_blue_first_is_drawn_in_its_right_colours(tmp_path: Path) -> None:
    config = transformers.MobileViTConfig(
        image_size=64, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[8] * 7, num_attention_heads=2
    )
    module = transformers.MobileViTModel(config).eval()
    module.save_pretrained(tmp_path / "m")
    processor = transformers.MobileViTImageProcessor(size={"shortest_edge": 64}, crop_size=SMALL)
    processor.save_pretrained(tmp_path / "m")
    photos = [noise(80, 60), Image.new("RGB", (70, 70), "red")]
    extract(
        tiny_extraction(
            tmp_path / "a", model=TransformersModel(name=str(tmp_path / "m")),
            dataset=FromSequence(items=photos), layers=LayerSelector(include=("conv_stem",)),
        )
    )  # fmt: skip
    with h5py.File(tmp_path / "a" / "archive.h5") as file:
        assert file["inputs"].attrs["bgr"]
    with Archive.open(tmp_path / "a") as archive:
        np.testing.assert_array_equal(archive.image(1)[24, 24], (255, 0, 0))
        weights = archive.filters["conv_stem.convolution"]
        np.testing.assert_array_equal(weights, module.conv_stem.convolution.weight.detach())
        (picture,) = Filters(tile_size=3, max_channels=1).draw_archive(archive)
        tile = as_rgb(weights[0])[:, :, ::-1]  # takes blue first, is shown red first
        assert drawn(picture.rgb, tile)
        for row, photo in enumerate(photos):
            pixels = processor(images=photo, return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                expected = module.conv_stem(pixels)[0]
            np.testing.assert_allclose(
                archive.layers["conv_stem"][row], expected, rtol=1e-4, atol=1e-5
            )


def test_a_folder_without_a_readable_processor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=32,
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    source = TransformersModel(name=str(tmp_path))
    assert source.load().transform.size == (32, 32)
    assert "has no image processor: images are resized to the model's size" in caplog.text
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"image_processor_type": "NoSuchImageProcessor"}))
    with pytest.raises(ConfigError, match=r"the image processor of .* cannot be loaded"):
        source.load()
