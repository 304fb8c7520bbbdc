"""storage.dtype=bfloat16: torch's rounding of float32, bit for bit, through every reader."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pipeline.archive.format import file_bytes
from pipeline.archive.format.stored_type import decode, encode
from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.compare import compare
from pipeline.archive.tools.pack import pack
from pipeline.archive.tools.verify import verify
from pipeline.common.arrays import Array
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Storage
from pipeline.models.tiny import TinyModel
from tests.conftest import tiny_extraction

Rounded = dict[str, Array]


def _extract(folder: Path, codec: str = "none") -> tuple[Path, Rounded]:
    """Make an archive that exceeds float16 and has NaN in its last layer; return what torch
    makes of the same layers in float32.
    """
    state = TinyModel().load().module.state_dict()
    state["conv1.weight"] *= 1e6
    state["fc.bias"][1] = float("nan")
    torch.save(state, folder / "large.pth")
    model = TinyModel(weights=str(folder / "large.pth"))
    made = {}
    for kind in ("float32", "bfloat16"):
        storage = Storage(dtype=kind, codec=codec, shard_samples=3)
        extract(tiny_extraction(folder / kind, model=model, storage=storage))
    with Archive.open(folder / "float32") as archive:
        for name, layer in archive.layers.items():
            made[name] = torch.from_numpy(layer[:]).to(torch.bfloat16).float().numpy()
    assert np.nanmax(np.abs(made["conv1"])) > 65504
    return folder / "bfloat16", made


def _same(found: Array, expected: Array) -> None:
    """Compare bit for bit; any NaN is NaN."""
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_values_are_those_of_torch_in_half_the_space(tmp_path: Path) -> None:
    path, rounded = _extract(tmp_path)
    verify(path)
    with Archive.open(path) as archive, h5py.File(path / "archive.h5") as file:
        for name, layer in archive.layers.items():
            _same(layer[:], rounded[name])
            _same(layer[[5, 1]], rounded[name][[5, 1]])
            _same(layer[2:6, 1], rounded[name][2:6, 1])
            stored = file[f"layers/{name}/activation"]
            _same(stored[:], rounded[name])
            assert stored.id.get_type().get_size() == 2
            assert layer.entry.sample_bytes == 2 * rounded[name][0].size
        exact = Archive.open(tmp_path / "float32").layers["conv2"]
        errors = np.abs(rounded["conv2"] - exact[:]) / np.abs(exact[:])
        assert np.nanmax(errors) * (1 - 1e-4) <= (archive.layers["conv2"].rounding or 0) < 2**-8


def test_every_bit_pattern_survives() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    values = decode(bits, "bfloat16")
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(encode(values, "bfloat16"), bits)


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_every_reader_sees_the_same_values(tmp_path: Path, codec: str) -> None:
    import silx.io
    import xarray

    path, rounded = _extract(tmp_path, codec)
    verify(path)
    with Archive.open(path) as archive:
        packed = pack(archive, tmp_path / "packed.h5")
        with Archive.open(packed) as other:
            assert compare(archive, other)["equal"]
            for name, layer in other.layers.items():
                _same(layer[:], rounded[name])
                for row in range(len(layer)):
                    _same(layer[row], rounded[name][row])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(file_bytes, "on_local_disk", lambda _: False)
            with Archive.open(path) as unmapped:
                _same(unmapped.layers["conv2"][:], rounded["conv2"])
    verify(packed)
    for file in (path / "archive.h5", packed):
        for engine in ("h5netcdf", "netcdf4") if codec != "zstd" else ("h5netcdf",):
            for name, expected in rounded.items():
                with xarray.open_dataset(file, group=f"layers/{name}", engine=engine) as found:
                    _same(found["activation"].to_numpy(), expected)
    with silx.io.open(str(packed)) as found:
        _same(found["layers/conv1/activation"][()], rounded["conv1"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("h5dump") is None, reason="no h5dump; .ci/run installs it")
def test_programs_in_c_and_javascript_see_the_same_values(tmp_path: Path) -> None:
    path, rounded = _extract(tmp_path)
    with Archive.open(path) as archive:
        packed = pack(archive, tmp_path / "packed.h5")
    out = tmp_path / "fc.txt"
    words = ["-d", "/layers/fc/activation", "-y", "-w", "0", "-m", "%.9g", "-o", str(out)]
    subprocess.run(["h5dump", *words, str(packed)], check=True, capture_output=True)
    values = np.array(out.read_text().replace(",", " ").split(), dtype=np.float32)
    np.testing.assert_array_equal(values, rounded["fc"].ravel())
