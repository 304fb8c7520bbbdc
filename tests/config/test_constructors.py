"""Errors of the Python interface: one line that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline
from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import ConfigError


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: pipeline.Grid(max_channels="x"),
            "Grid: max_channels: must be an integer, got",
        ),
        (
            lambda: pipeline.Grid(max_channel=3),
            "Grid: max_channel: no such key; did you mean max_channels?",
        ),
        (
            lambda: pipeline.TorchvisionModel(nme="resnet18"),  # also without the required name
            "TorchvisionModel: nme: no such key; did you mean name?",
        ),
        (lambda: pipeline.TorchvisionModel(), "TorchvisionModel: name: is required; set it, e.g. "),
        (
            lambda: pipeline.SampleImages(limit=-1),
            "SampleImages: limit: must be at least 1, got",
        ),
        (
            lambda: pipeline.FlatFolder("photos"),
            "FlatFolder: takes keyword arguments only, got 'photos'",
        ),
        (
            lambda: pipeline.Storage(dtype="float8"),
            "Storage: dtype: unknown value 'float8'; did you mean float",
        ),
        (
            lambda: pipeline.Extraction(model="resnet18", dataset=pipeline.SampleImages()),
            "Extraction: model: must be a ModelSource: TorchvisionModel(name=…), "
            "FromModule(module=…), …, got 'resnet18'",
        ),
        (
            lambda: pipeline.Extraction(model=pipeline.TinyModel(), dataset="photos"),
            "Extraction: dataset: must be an ImageDataset: ImageFolder(root=…), "
            "FromSequence(items=…), …, got 'photos'",
        ),
        (
            lambda: pipeline.Extraction(
                model=pipeline.TinyModel(), dataset=pipeline.SampleImages(), layers=["fc"]
            ),
            "Extraction: layers: must be a LayerSelector: LayerSelector(include=…), got ['fc']",
        ),
        (
            lambda: pipeline.Extraction(
                model=pipeline.TinyModel(),
                dataset=pipeline.SampleImages(),
                reduction=pipeline.SpatialMean,
            ),
            "Extraction: reduction: must be an object, not a class: SpatialMean(…)",
        ),
        (
            lambda: pipeline.TorchvisionModel("resnet18"),  # also without the required name
            "TorchvisionModel: takes keyword arguments only, got 'resnet18'",
        ),
        (
            lambda: pipeline.Loader(decoding=pipeline.Decoding(background="nope")),
            "Decoding: unknown color specifier: 'nope'",
        ),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_a_wrong_reduction_of_a_layer_is_named() -> None:
    for text in ("grid:0x5", "positions:-1"):
        with pytest.raises(ConfigError, match=f"'{text}': .*must be at least 1"):
            pipeline.PerLayer(layers={"conv1": text})


def test_renderers_have_names_and_are_renderers(opened: Archive, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"renderers: grid is a class; use Grid\(…\)$"):
        pipeline.render(opened, tmp_path, {"grid": pipeline.Grid})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="options: must be RenderOptions"):
        pipeline.render(opened, tmp_path, {}, {"samples": "all"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="renderers: grid is 'grid', not a renderer"):
        pipeline.render(opened, tmp_path, {"grid": "grid"})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="renderers: give each a name"):
        pipeline.render(opened, tmp_path, [pipeline.Grid()])  # type: ignore[arg-type]


def test_a_wrong_layer_is_a_key_error_with_the_nearest_names(opened: Archive) -> None:
    for archive in (opened, opened.with_layers("conv*")):
        with pytest.raises(KeyError, match="no layer 'conv11'; did you mean conv1"):
            archive.layers["conv11"]
        assert "conv11" not in archive.layers
        assert archive.layers.get("conv11") is None


def test_open_archives_and_their_paths_are_taken_alike(opened: Archive) -> None:
    one, two = (pipeline.health(archive) for archive in (opened, opened.path))
    assert one.matrix("dead").tolist() == two.matrix("dead").tolist()
    items = [pipeline.ActivationDataset(archive, "fc")[0] for archive in (opened, opened.path)]
    assert items[0][0]["fc"].equal(items[1][0]["fc"])


def test_weights_of_torchvisions_enumerations() -> None:
    from torchvision.models import ResNet18_Weights

    for member in (ResNet18_Weights.IMAGENET1K_V1, ResNet18_Weights.DEFAULT):
        model = pipeline.TorchvisionModel(name="resnet18", weights=member)  # type: ignore[arg-type]
        assert model.weights == "IMAGENET1K_V1"
