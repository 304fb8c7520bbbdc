"""Archives of more layers than HDF5 can list in one attribute."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.archive.format import tree
from pipeline.archive.tools.verify import verify
from tests.helpers.random_archives import archive_of, random


@pytest.mark.parametrize(
    ("layers", "shared"), [(5, 2), pytest.param(2100, None, marks=pytest.mark.slow)]
)
def test_more_layers_than_hdf5_lists_for_one_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, shared: int | None
) -> None:
    """HDF5 lists at most 4095 datasets that use a scale; each layer has two at least."""
    if shared:
        monkeypatch.setattr(tree, "_LAYERS_PER_SCALE", shared)
    values = {f"l{i}": random(3, 2, seed=i) for i in range(layers)}
    archive = archive_of(tmp_path / "a", values, shards=2)
    assert verify(archive)["hdf5"]
    with h5py.File(archive / "shards/00001.h5") as file:
        for name in values:
            activation = file[f"layers/{name}/activation"]
            np.testing.assert_array_equal(activation[()], values[name][1:])
            np.testing.assert_array_equal(activation.dims[0][0][()], [1, 2])
