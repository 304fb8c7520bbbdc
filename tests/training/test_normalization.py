"""Normalization by stored statistics equals NumPy's over all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import ActivationLoader
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError
from scripts.synthetic_archive import layer_of, write_archive

COUNT, PREFIX = 23, 2
RANDOM = np.random.default_rng(8)
SPREAD = np.array([1, 1e-3, 50, 0, 0, 3])
MEANS = np.array([0, 4, -7, 0.1, 0, 1e4])
MAPS = (MEANS[:, None, None] + SPREAD[:, None, None] * RANDOM.normal(size=(COUNT, 6, 3, 3))).astype(
    np.float32
)
FLAT = MAPS.reshape(COUNT, 6, 9).transpose(0, 2, 1)
PREFIXES = np.full((COUNT, PREFIX, 6), 777, np.float32)  # no statistic covers them
LAYERS = {
    "maps": (MAPS, {}),
    "tokens": (np.concatenate([PREFIXES, FLAT], axis=1),
               {"grid": (3, 3), "prefix_tokens": PREFIX, "class_token": True}),
    "swapped": (np.concatenate([PREFIXES, FLAT], axis=1).transpose(0, 2, 1),
                {"axes": ("channel", "token"), "prefix_tokens": PREFIX}),
    "last": (MAPS.transpose(0, 2, 3, 1), {"axes": ("height", "width", "channel")}),
    "narrow": (MAPS.astype(np.float16), {}),
    "vectors": (FLAT[:, 0], {}),
    "zeros": (np.zeros((COUNT, 4), np.float32), {}),
    "attention": (RANDOM.random((COUNT, 2, 4, 4)).astype(np.float32),
                  {"axes": ("head", "query", "key"), "prefix_tokens": 1}),
}  # fmt: skip
SKIPPED = 5
STORED = np.delete(np.arange(COUNT), SKIPPED)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ids = [f"{row:02}" for row in range(COUNT)]
    return write_archive(
        tmp_path_factory.mktemp("scales") / "a", skipped=[ids[SKIPPED]], shards=3, ids=ids,
        layers={name: layer_of(np.ascontiguousarray(v), **m) for name, (v, m) in LAYERS.items()},
    )  # fmt: skip


def scaling(values: Array, axis: int, normalize: str) -> tuple[Array, Array]:
    """Return offset and scale in float64, over the stored rows."""
    wide = values[STORED].astype(np.float64)
    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    mean, std = wide.mean(others, keepdims=True), wide.std(others, keepdims=True)
    ones = np.ones_like(mean)
    return {
        "none": (0 * ones, ones),
        "mean": (mean, ones),
        "standard": (mean, np.where(std > 1e-6 * np.abs(mean), std, 1)),
        "rms": (0 * ones, (np.sqrt((wide**2).mean()) or 1) * ones),
    }[normalize]


@pytest.mark.parametrize("normalize", ["mean", "standard", "rms", "none"])
@pytest.mark.parametrize("name", list(LAYERS))
def test_all_rows_equal_numpy(path: Path, name: str, normalize: str) -> None:
    prefixed = name in ("tokens", "swapped")
    options: dict[str, Any] = {"tokens": "patch"} if prefixed else {}
    loader = ActivationLoader(
        path, name, 4, normalize=normalize, run_bytes=500, reservoir=2, **options
    )
    batches = list(loader)
    loader.close()
    rows = np.concatenate([batch.rows for batch in batches])
    activations = np.concatenate([batch.activations[name] for batch in batches])
    axis = -1 if name in ("last", "tokens", "swapped") else 1
    values = FLAT if prefixed else LAYERS[name][0]
    offset, scale = scaling(values, axis, normalize)
    normal = ((values - offset) / scale)[rows[::9] if prefixed else rows]
    normal = normal.reshape(activations.shape)
    stored = np.float16 if name == "narrow" and normalize == "none" else np.float32
    assert activations.dtype == stored
    rounding = 4 * np.finfo(np.float32).eps * np.abs(offset) / scale  # of the means of samples
    rounding = rounding.reshape(-1, 6) if prefixed else rounding
    assert (np.abs(activations - normal) <= rounding + 2e-6 * np.abs(normal)).all()
    assert sorted({*rows.tolist()}) == STORED.tolist()


def test_whole_dataset_has_mean_zero_and_std_one(path: Path) -> None:
    loader = ActivationLoader(path, ["tokens", "maps"], 4, positions=9, normalize="standard")
    batches = list(loader)
    loader.close()
    for key in ("tokens", "maps"):
        vectors = np.concatenate([batch.activations[key] for batch in batches]).astype(np.float64)
        np.testing.assert_allclose(vectors[:, [0, 2]].mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(vectors[:, [0, 1, 2, 5]].std(0), 1, rtol=1e-4)
        np.testing.assert_allclose(vectors[:, [3, 4]], 0, atol=1e-7)  # constant channels


@pytest.mark.parametrize("options", [{}, {"tokens": "class"}, {"tokens": "all", "positions": 3},
                                     {"tokens": "register"}])  # fmt: skip
def test_tokens_without_statistics_are_refused(path: Path, options: dict[str, Any]) -> None:
    message = (
        "normalize: the statistics of layer tokens do not cover prefix tokens; use tokens=patch"
    )
    with pytest.raises(ConfigError, match=f"^{message}$"):
        ActivationLoader(path, "tokens", 4, normalize="rms", **options)
    with pytest.raises(
        ConfigError, match="normalize: unknown value 'std'; choose from: none, mean, s"
    ):
        ActivationLoader(path, "maps", 4, normalize="std")
