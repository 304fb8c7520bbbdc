"""Prefix tokens are no positions; patterns and channels must be given right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.info import archive_facts, describe
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ConfigError, LayerError
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.extraction.reductions.per_layer import PerLayer
from pipeline.extraction.reductions.pooling import SpatialMean
from pipeline.extraction.settings import Storage
from pipeline.models.base import ModelBundle, ModelSource
from pipeline.models.timm import TimmModel
from pipeline.models.transforms import TransformOverride
from tests.conftest import Run, tiny_extraction

AT_64 = TransformOverride(resize=(64,), crop=(64,))


def test_a_pattern_that_matches_no_layer_is_an_error(tmp_path: Path, run: Run) -> None:
    with pytest.raises(ConfigError, match=r"'layer9' matches none .*(choose from|did you mean)"):
        extract(tiny_extraction(tmp_path / "a", reduction=PerLayer(layers={"layer9": "none"})))
    assert not (tmp_path / "a").exists()
    code, _, err = run("plan", "model=tiny", "dataset=synthetic", "reduction=per_layer",
                       "reduction.layers={conv3: spatial_mean}")  # fmt: skip
    assert code == 2
    assert "reduction.layers: 'conv3' matches none of the selected layers; did you mean" in err


def test_channels_are_required(run: Run) -> None:
    code, _, err = run("extract", "model=tiny", "dataset=synthetic", "reduction=channels")
    assert code == 2
    assert "reduction.channels: is required" in err


@pytest.fixture(scope="module")
def vit_archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return archives of a small vision transformer, whole and as spatial means."""
    place = tmp_path_factory.mktemp("vit")
    for name, reduction in (("whole", {}), ("means", {"reduction": SpatialMean()})):
        extract(small_vit(place / name, **reduction))
    return place / "whole", place / "means"


def small_vit(path: Path, **changes: object) -> Any:
    """Return an extraction of a vision transformer with one class token."""
    model = TimmModel(
        name="vit_tiny_patch16_224", weights=None, arguments={"img_size": 64, "depth": 2},
        transform=AT_64,
    )  # fmt: skip
    layers = LayerSelector(include=("blocks.0", "blocks.1"))
    data = Synthetic(samples=3, height=64, width=64)
    return tiny_extraction(path, model=model, layers=layers, dataset=data, **changes)


def test_means_and_statistics_leave_the_class_token_out(
    vit_archives: tuple[Path, Path],
) -> None:
    with Archive.open(vit_archives[0]) as whole, Archive.open(vit_archives[1]) as means:
        layer = whole.layers["blocks.1"]
        values = layer[:].astype(np.float64)[:, 1:]  # (sample, token, channel)
        np.testing.assert_allclose(layer.sample_mean, values.mean(1), rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(layer.sample_max, values.max(1).astype(np.float32))
        np.testing.assert_allclose(
            means.layers["blocks.1"][:], values.mean(1), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(layer.statistics["mean"], values.mean((0, 1)), rtol=1e-4,
                                   atol=1e-6)  # fmt: skip
        assert (layer.statistics["count"] == values.shape[0] * values.shape[1]).all()
    for path in vit_archives:
        with h5py.File(path / "archive.h5") as file:
            stored = file["layers/blocks.1/activation"].attrs["positions"]
        assert stored == "grid, without 1 prefix token"
        text = describe(archive_facts(path))
        assert "(means and statistics over the grid, without 1 prefix token)" in text


def test_a_class_token_that_is_not_finite_is_still_counted(tmp_path: Path) -> None:
    from pipeline.archive.tools.verify import verify

    @dataclass(frozen=True, kw_only=True)
    class Sick(ModelSource):
        def build(self, seed: int) -> ModelBundle:
            built = TimmModel(
                name="vit_tiny_patch16_224", weights=None, arguments={"img_size": 64, "depth": 1}
            ).build(seed)
            built.module.norm_pre.register_forward_hook(
                lambda _m, _a, tokens: tokens.index_fill(1, torch.tensor(0), torch.inf)
            )
            return built

    config = small_vit(tmp_path / "a")
    values = {
        "model": Sick(name="sick", transform=AT_64),
        "layers": LayerSelector(include=("norm_pre",)),
    }
    extract(replace(config, **values))
    assert verify(tmp_path / "a")["nonfinite"] == {"norm_pre": 3 * 192}
    half = {**values, "storage": Storage(dtype="float16"), "archive": f"{tmp_path}/b",
            "on_nonfinite": "raise"}  # fmt: skip
    with pytest.raises(LayerError, match="NaN or infinite"):
        extract(replace(config, **half))


def test_a_large_class_token_does_not_overflow_silently(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Large(ModelSource):
        def build(self, seed: int) -> ModelBundle:
            built = TimmModel(
                name="vit_tiny_patch16_224", weights=None, arguments={"img_size": 64, "depth": 1}
            ).build(seed)
            built.module.norm_pre.register_forward_hook(
                lambda _m, _a, tokens: tokens.index_fill(1, torch.tensor(0), 1e6)
            )
            return built

    config = replace(
        small_vit(tmp_path / "a"), model=Large(name="large", transform=AT_64),
        layers=LayerSelector(include=("norm_pre",)), storage=Storage(dtype="float16"),
    )  # fmt: skip
    with pytest.raises(LayerError, match="float16 ends at"):
        extract(config)
