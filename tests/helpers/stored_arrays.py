"""All arrays of an archive, as h5py reads them."""

from pathlib import Path

import h5py
import numpy as np


def arrays(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path / "archive.h5") as file:
        values: dict[str, np.ndarray] = {}
        file.visititems(
            lambda name, item: (
                values.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    del values["manifest"]
    return values


def assert_same_arrays(one: Path, two: Path) -> None:
    a, b = arrays(one), arrays(two)
    assert set(a) == set(b)
    for name in a:
        if name.endswith(("/mean", "/std")):  # merged in the order of the shards
            np.testing.assert_allclose(a[name], b[name], rtol=1e-12, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
