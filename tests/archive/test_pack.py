"""A packed archive holds all that the original holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.pack import pack
from pipeline.common.errors import ArchiveError
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Storage
from pipeline.training.activation_dataset import ActivationDataset
from tests.conftest import REPOSITORY, Run, tiny_extraction


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
    left_out = ("/checksum", "manifest")
    return {name: one for name, one in found.items() if not name.endswith(left_out)}


@pytest.mark.parametrize("codec", ["none", pytest.param("gzip", marks=pytest.mark.slow), "zstd"])
@pytest.mark.filterwarnings("ignore:.*float16.*")
def test_a_packed_archive_holds_all_that_the_original_holds(tmp_path: Path, codec: str) -> None:
    storage = Storage(dtype="float16", codec=codec, shard_samples=3)  # type: ignore[arg-type]
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
        expected = json.loads((tmp_path / "a" / "manifest.json").read_text(encoding="utf-8"))
        assert stored == {key: value for key, value in expected.items() if key != "samples"}
        assert stored["layers"][0]["codec"] == codec


def test_a_packed_file_is_an_archive_for_every_command(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    (photos / "cats" / "empty.png").write_bytes(b"")
    words = ("model=tiny", "dataset=image_folder", f"dataset.root={photos}", "device=cpu",
             "on_error=skip", "storage.shard_samples=3", "loader.batch_size=1")  # fmt: skip
    assert run("extract", *words)[0] == 4
    whole, packed = tmp_path / "run" / "archive", tmp_path / "all.h5"
    assert run("pack", str(whole), str(packed))[0] == 0
    for command in ("info", "verify"):
        code, out, err = run(command, str(packed))
        assert code == 0, err
        assert str(packed) in out
        assert "1 skipped" in out
    code, out, _ = run("compare", str(whole), str(packed))
    assert code == 0, out
    words = (f"archive={packed}", "renderers=[grid,filters,top_samples]", "render.single_file=true")
    code, _, err = run("render", *words, folder="drawn")
    assert code == 0, err
    words = (f"archive={whole}", *words[1:])
    assert run("render", *words, folder="as before")[0] == 0
    for path in (tmp_path / "as before" / "pictures").rglob("*.png"):
        other = tmp_path / "drawn" / path.relative_to(tmp_path / "as before")
        assert path.read_bytes() == other.read_bytes()
    assert run("export", str(packed), str(tmp_path / "arrays"))[0] == 0
    assert run("reproduce", str(packed), str(tmp_path / "again"))[0] == 0
    with Archive.open(whole) as one, Archive.open(packed) as two:
        assert list(two.samples) == list(one.samples)
        assert two.stored.tolist() == one.stored.tolist()
        for name in one.layers:
            np.testing.assert_array_equal(two.layers[name][3:], one.layers[name][3:])
            assert two.layers[name].statistics["std"].tolist() == (
                one.layers[name].statistics["std"].tolist()
            )
    data = ActivationDataset(packed, "conv1")
    assert len(data) == 8


def test_damage_in_a_packed_file_is_named(run: Run, tiny_archive: Path, tmp_path: Path) -> None:
    packed = tmp_path / "all.h5"
    assert run("pack", str(tiny_archive), str(packed))[0] == 0
    with h5py.File(packed) as file:
        place = file["layers/conv1/activation"].id.get_offset()
    content = bytearray(packed.read_bytes())
    content[place + 100] ^= 1
    packed.write_bytes(content)
    code, _, err = run("verify", str(packed))
    assert code == 1
    assert str(packed) in err
    with pytest.raises(ArchiveError, match=r"all\.h5: damaged"), Archive.open(packed) as archive:
        archive.layers["conv1"][:]
    (tmp_path / "other.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    for path in (tmp_path / "other.h5", REPOSITORY / "README.md"):
        code, _, err = run("info", str(path))
        assert code == 1
        assert err.count("\n") == 1
