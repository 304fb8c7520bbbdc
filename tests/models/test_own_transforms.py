"""timm's and torchvision's models get the pixels of their library's own evaluation transform."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg
from torchvision import models
from torchvision.transforms import _presets

from pipeline.common.errors import ConfigError
from pipeline.models.timm import transform_of
from pipeline.models.torchvision import _transform_of
from pipeline.models.transforms import Transform
from tests.helpers.processor_pixels import noise

SHAPES = ((90, 61), (60, 101), (64, 64))
PLAIN = {"input_size": (3, 48, 48), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}


def assert_equal(transform: Transform, own: Callable[[Image.Image], torch.Tensor]) -> None:
    transform = pickle.loads(pickle.dumps(transform))
    assert json.loads(json.dumps(transform.describe())) == transform.describe()
    for shape in SHAPES:
        found = transform.normalize(torch.from_numpy(transform.pixels(noise(*shape)))[None])[0]
        torch.testing.assert_close(found, own(noise(*shape)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_pct": 0.9},
        {"crop_pct": 1.0, "interpolation": "bicubic"},
        {"crop_mode": "squash", "crop_pct": 0.95},
        {"crop_mode": "border", "crop_pct": 1.0},
        {"crop_mode": "border", "crop_pct": 0.8, "interpolation": "lanczos"},
        {"input_size": (3, 64, 48)},
        {"input_size": (3, 40, 48), "crop_mode": "squash"},
        {"input_size": (3, 40, 48), "crop_mode": "border"},
    ],
    ids=str,
)
def test_timms_crop_modes(changes: dict[str, Any]) -> None:
    config = PLAIN | changes
    own = create_transform(**resolve_data_config(pretrained_cfg=config))
    assert_equal(transform_of(SimpleNamespace(pretrained_cfg=config)), own)


def test_an_interpolation_that_timm_does_not_know_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"'spline'.*set model\.transform\.resize"):
        transform_of(SimpleNamespace(pretrained_cfg=PLAIN | {"interpolation": "spline"}))


@pytest.mark.broad
def test_every_configuration_of_timm() -> None:
    """Every model and every weights of every family, by what its configuration says."""
    keys = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
    configs = {}
    for name in {*timm.list_models(), *timm.list_pretrained()}:
        found = get_pretrained_cfg(name, allow_unregistered=True)
        if found is not None:
            config = {key: found.to_dict().get(key) for key in keys}
            configs[str(config)] = config
    assert len(configs) > 50
    for config in configs.values():
        own = create_transform(**resolve_data_config(pretrained_cfg=config))
        assert_equal(transform_of(SimpleNamespace(pretrained_cfg=config)), own)


def presets() -> dict[str, Any]:
    """Return one weights entry for every preset that torchvision's models have."""
    found = {}
    for name in models.list_models():
        for weights in models.get_model_weights(name):
            preset = weights.transforms()
            # Videos and pairs of images are no images: such models are refused in the dummy batch.
            if not isinstance(preset, (_presets.VideoClassification, _presets.OpticalFlow)):
                found[str(preset)] = weights
    return found


def test_presets_of_torchvision() -> None:
    weights = presets()
    kinds = {type(entry.transforms()).__name__: entry for entry in weights.values()}
    assert {"ImageClassification", "ObjectDetection", "SemanticSegmentation"} <= {*kinds}
    for entry in kinds.values():
        assert_equal(_transform_of(entry), entry.transforms())


@pytest.mark.broad
def test_every_preset_of_torchvision() -> None:
    for entry in presets().values():
        assert_equal(_transform_of(entry), entry.transforms())
