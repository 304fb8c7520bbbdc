"""A packed archive holds all that the original holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.archive.pack import pack
from pipeline.archive.reader import Archive
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Storage, StoredType
from tests.conftest import tiny_extraction


def everything(path: Path) -> dict[str, Any]:
    """Return every dataset's values, type, filters and attributes, and every group's attributes."""
    found: dict[str, Any] = {}

    def look(name: str, item: h5py.Dataset | h5py.Group) -> None:
        skip = ("REFERENCE_LIST", "DIMENSION_LIST")
        attributes = {k: np.asarray(v).tolist() for k, v in item.attrs.items() if k not in skip}
        found[name] = attributes
        if isinstance(item, h5py.Dataset):
            scales = [[scale.name for scale in dim.values()] for dim in item.dims]
            texts = item.dtype.kind == "O"
            values = np.asarray(item[()]).tolist() if texts else item[()].tobytes()
            found[name] = (attributes, item.dtype, item.shape, values, scales)

    with h5py.File(path) as file:
        look("/", file)
        file.visititems(look)
    return found


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
@pytest.mark.filterwarnings("ignore:.*float16.*")
def test_a_packed_archive_holds_all_that_the_original_holds(tmp_path: Path, codec: str) -> None:
    storage = Storage(dtype=StoredType.FLOAT16, codec=codec, shard_samples=3)  # type: ignore[arg-type]
    extract(tiny_extraction(tmp_path / "a", storage=storage))
    with Archive.open(tmp_path / "a") as archive:
        pack(archive, tmp_path / "packed.h5")
        assert archive.layers["conv1"].rounding is not None
    assert everything(tmp_path / "packed.h5") == everything(tmp_path / "a" / "archive.h5")
    with h5py.File(tmp_path / "packed.h5") as packed:
        assert "max_relative_error" in packed["layers/conv1/activation"].attrs
        filters = packed["layers/conv1/activation"].id.get_create_plist()
        assert (filters.get_nfilters() == 2) == (codec != "none")  # shuffled and compressed
        stored = json.loads(packed["manifest"].asstr()[()])
        assert stored["layers"][0]["codec"] == codec
