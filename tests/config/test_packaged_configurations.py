"""Every packaged configuration composes and builds, and the tutorials run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.archive.reading.archive import Archive
from pipeline.config.config_docs import choices, conf_folder
from tests.conftest import Run

TINY = ("model=tiny", "dataset=synthetic", "dataset.samples=3", "device=cpu")


@pytest.mark.slow
def test_every_packaged_configuration_composes_and_builds() -> None:
    from hydra import compose, initialize_config_dir

    from pipeline.config import hydra_schema as config
    from pipeline.config.build import build_extraction, build_rendering

    config.register("run")
    fill = {
        "model=torchvision": ["model.name=resnet18"],
        "model=timm": ["model.name=resnet18"],
        "model=checkpoint": ["model.class_path=a.B", "model.weights=null"],
        "model=hub": ["model.repo=x", "model.name=y"],
        "model=transformers": ["model.name=vit"],
        "dataset=torchvision": ["dataset.name=FakeData"],
        "reduction=channels": ["reduction.channels=[0]"],
        "reduction=per_layer": ["reduction.default=spatial_mean"],  # must reduce something
        "dataset=huggingface": ["dataset.name=imagefolder"],
    }
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        for group in (
            "experiment",
            "model",
            "layers",
            "dataset",
            "reduction",
            "renderers",
            "loader",
            "storage",
            "shard",
        ):
            for choice in choices(group):
                composed = compose(
                    "run", [f"{group}={choice}", "archive=x", *fill.get(f"{group}={choice}", [])]
                )
                plain = config.to_plain(composed)
                build_extraction(plain)
                build_rendering(plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "kinds"),
    [
        ("vgg16_stages", 4, {"grid", "mean_map"}),
        ("vgg16_all_convs", 13, {"grid", "filters"}),
        ("vgg11_pca", 8, {"grid", "pca"}),
        ("resnet50_pca", 5, {"grid", "pca"}),
        ("resnet18_mean", 3, {"grid", "grid_grey", "mean_map"}),
    ],
)
def test_the_tutorials_run(
    run: Run, tmp_path: Path, name: str, layers: int, kinds: set[str]
) -> None:
    small = ("model.transform.resize=[64,64]", "model.transform.crop=[64,64]", "dataset.limit=1")
    code, _, err = run("run", f"experiment={name}", "model.weights=null", "device=cpu", *small)
    assert code == 0, err
    assert {path.name for path in (tmp_path / "run" / "pictures").iterdir()} == kinds | {
        "thumbnails"
    }
    with Archive.open(tmp_path / "run" / "archive") as archive:
        assert len(archive.layers) == layers
        if name == "vgg16_stages":
            assert [layer.alias for layer in archive.layers.values()] == [
                "conv1_1",
                "conv2_1",
                "conv3_1",
                "conv4_1",
            ]


def test_no_configuration_is_built_by_the_thread_that_first_needs_it() -> None:
    """Two threads at once found the fields of the parent class, with pydantic 2.11."""
    from pipeline.config.plugins import PLUGINS, SETTINGS, SINGLE, kinds, locate

    for group in PLUGINS:
        for kind in kinds(group).values():
            assert vars(kind)["__pydantic_complete__"], kind
    for path in (*SINGLE.values(), SETTINGS):
        assert vars(locate(path))["__pydantic_complete__"], path
