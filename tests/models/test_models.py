"""Model sources: real weights give real predictions, transforms are the weights' own.

Faults have one clear line.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ConfigError, WeightsError
from pipeline.datasets.base import open_dataset
from pipeline.datasets.decoding import Decoding, decode
from pipeline.datasets.image_folder import ImageFolder
from pipeline.datasets.sample_images import SampleImages
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Extraction
from pipeline.models.efficientnet_lite import EfficientNetLite, packaged_weights
from pipeline.models.tiny import TinyModel
from pipeline.models.torchvision import TorchvisionModel
from pipeline.models.transforms import Transform, TransformOverride
from pipeline.models.weights.files import read_state_dict
from pipeline.models.weights.state_dict import state_digest

TABBY, EGYPTIAN_CAT, ESPRESSO = 281, 285, 967


@pytest.mark.parametrize(
    ("name", "cats", "espresso"),
    [("tf_efficientnet_lite0", 0.85, 0.9), ("tf_efficientnet_lite2", 0.7, 0.8)],
)
def test_the_embedded_models_are_really_pretrained(name: str, cats: float, espresso: float) -> None:
    loaded = EfficientNetLite(name=name).load()
    images = open_dataset(SampleImages())
    ids = [sample.id for sample in images.samples]
    pixels = [
        loaded.transform.pixels(decode(images.read(ids.index(i)), Decoding()))
        for i in ("chelsea", "coffee")
    ]
    with torch.inference_mode():
        scores = loaded.module(
            loaded.transform.normalize(torch.from_numpy(np.stack(pixels)))
        ).softmax(1)
    assert scores[0, TABBY : EGYPTIAN_CAT + 1].sum() > cats
    assert scores[0].argmax() in range(TABBY, EGYPTIAN_CAT + 1)
    assert scores[1].argmax() == ESPRESSO
    assert scores[1, ESPRESSO] > espresso


def test_the_weights_digest_is_that_of_the_file() -> None:
    path = packaged_weights("tf_efficientnet_lite0")
    assert EfficientNetLite().load().weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_squeezenets_first_convolution_equals_conv2d_of_the_stored_input(
    tmp_path: Path, photos: Path
) -> None:
    source = TorchvisionModel(name="squeezenet1_1", weights=None).load(seed=5)
    torch.save(source.module.state_dict(), tmp_path / "squeezenet.pth")
    model = TorchvisionModel(name="squeezenet1_1", weights=str(tmp_path / "squeezenet.pth"))
    extract(
        Extraction(
            model=model,
            dataset=ImageFolder(root=str(photos)),
            layers=LayerSelector(include=("features.0",)),
            archive=str(tmp_path / "archive"),
            device="cpu",
        )
    )
    state = source.module.state_dict()
    with Archive.open(tmp_path / "archive") as archive:
        assert len(archive) == 8
        for i in range(len(archive)):
            image = torch.from_numpy(archive.image(i).transpose(2, 0, 1).copy())[None]
            mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
            x = (image / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
            expected = F.conv2d(x, state["features.0.weight"], state["features.0.bias"], stride=2)
            stored = torch.from_numpy(archive.layers["features.0"][i])
            assert stored.min() < 0
            torch.testing.assert_close(stored, expected[0], rtol=1e-4, atol=1e-4)


def test_resnet18_bn1_is_captured_before_the_in_place_relu(tmp_path: Path, photos: Path) -> None:
    extract(
        Extraction(
            model=TorchvisionModel(name="resnet18", weights=None),
            dataset=ImageFolder(root=str(photos), limit=3),
            layers=LayerSelector(include=("layer1.0.conv1", "layer1.0.bn1")),
            archive=str(tmp_path / "archive"),
            device="cpu",
        )
    )
    state = TorchvisionModel(name="resnet18", weights=None).load(seed=0).module.state_dict()
    with Archive.open(tmp_path / "archive") as archive:
        for i in range(3):
            conv = torch.from_numpy(archive.layers["layer1.0.conv1"][i])[None]
            expected = F.batch_norm(
                conv,
                *(
                    state[f"layer1.0.bn1.{name}"]
                    for name in ("running_mean", "running_var", "weight", "bias")
                ),
            )
            assert expected.min() < 0
            stored = torch.from_numpy(archive.layers["layer1.0.bn1"][i])
            torch.testing.assert_close(stored, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet50", "vgg16", "vit_b_16", "swin_t", "efficientnet_b0", "fcn_resnet50"]
)
def test_the_transform_equals_torchvisions_own(name: str) -> None:
    from torchvision import models

    from pipeline.models.torchvision import _transform_of

    weights = models.get_model_weights(name)["DEFAULT"]
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (301, 427, 3), dtype=np.uint8)
    )
    expected = weights.transforms()(image)
    transform = _transform_of(weights)
    pixels = torch.from_numpy(transform.pixels(image))[None]
    torch.testing.assert_close(transform.normalize(pixels)[0], expected, rtol=1e-6, atol=1e-6)


def test_every_torchvision_transform_can_be_read() -> None:
    from torchvision import models

    from pipeline.models.torchvision import _transform_of

    for name in models.list_models(module=models):
        enum = models.get_model_weights(name)
        if len(enum):
            transform = _transform_of(enum["DEFAULT"])
            assert transform.size is not None, name


def test_the_transform_can_be_overridden_and_is_checked() -> None:
    changes = TransformOverride(resize=(64, 48), crop=(32,), mean=(0.5,), std=(0.25,))
    transform = Transform().override(changes)
    assert transform.pixels(Image.new("RGB", (100, 80), "white")).shape == (1, 32, 32)
    with pytest.raises(ConfigError, match=r"^TransformOverride: std: must be positive"):
        TransformOverride(std=(0.0,))
    with pytest.raises(ConfigError, match=r"^TransformOverride: crop: takes one positive size"):
        TransformOverride(crop=(0,))


def test_random_weights_follow_the_seed_and_leave_torchs_generator_alone() -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    one, two, other = (TinyModel(weights=None).load(seed=seed).state_sha256 for seed in (1, 1, 2))
    assert one == two != other
    assert torch.equal(before, torch.random.get_rng_state())


def test_names_are_suggested() -> None:
    with pytest.raises(ConfigError, match=r"no model 'resnet81'; did you mean .*resnet18"):
        TorchvisionModel(name="resnet81").load()
    with pytest.raises(
        ConfigError, match=r"no weights 'IMAGENET1K_V3'; did you mean IMAGENET1K_V1"
    ):
        TorchvisionModel(name="resnet18", weights="IMAGENET1K_V3").load()
    with pytest.raises(ConfigError, match=r"model\.arguments"):
        TorchvisionModel(name="resnet18", weights=None, arguments={"num_klasses": 3}).load()


def test_a_failed_download_names_the_alternatives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from urllib.error import URLError

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(
        WeightsError,
        match=r"ResNet18_Weights.* could not be downloaded: .*model\.weights=PATH.*null",
    ):
        TorchvisionModel(name="resnet18").load()


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/featuremaps-was-here",)


def test_bad_checkpoints_are_refused_unread(tmp_path: Path) -> None:
    torch.save({"state_dict": _Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(WeightsError, match="was not loaded"):
        read_state_dict(tmp_path / "hostile.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WeightsError, match=r"not a file of torch\.save or safetensors"):
        read_state_dict(tmp_path / "text.pth")
    with pytest.raises(ConfigError, match="no such file"):
        TinyModel(weights=str(tmp_path / "none.pth")).load()
    torch.save(
        {"conv1.weight": torch.zeros(4, 3, 5, 5), "more": torch.zeros(1)}, tmp_path / "other.pth"
    )
    with pytest.raises(
        WeightsError, match=r"missing: .*; not in the model: more; shapes differ: conv1\.weight"
    ):
        TinyModel(weights=str(tmp_path / "other.pth")).load()


def test_wrapped_checkpoints_are_unwrapped(tmp_path: Path) -> None:
    source = TinyModel(weights=None).load(seed=9)
    state = {f"module.{name}": value for name, value in source.module.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "wrapped.pth")
    again = TinyModel(weights=str(tmp_path / "wrapped.pth")).load()
    assert again.state_sha256 == state_digest(source.module)
