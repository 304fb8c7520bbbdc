"""An archive's files as programs see them that know nothing of this project.

xarray's two engines (test_readers), HDF5's own `h5dump`, silx's NXdata lookup, and h5wasm, which
browser viewers use, in Node. `.ci/run` installs what these tests look for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.archive.format import schema
from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.pack import pack
from pipeline.archive.tools.verify import verify
from scripts.synthetic_archive import layer_of, write_archive
from tests.conftest import REPOSITORY, Run
from tests.helpers.random_archives import archive_of, random

H5WASM = next(
    (
        folder / "h5wasm"
        for folder in (
            REPOSITORY / ".cache" / "node_modules",
            *map(Path, filter(None, os.environ.get("NODE_PATH", "").split(":"))),
        )
        if (folder / "h5wasm").is_dir()
    ),
    None,
)


@pytest.fixture
def packed(opened: Archive, tmp_path: Path) -> Path:
    return pack(opened, tmp_path / "packed.h5")


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="no h5dump; .ci/run installs it")
def test_h5dump_reads_the_packed_file(packed: Path, opened: Archive) -> None:
    def dump(*arguments: str) -> str:
        done = subprocess.run(
            ["h5dump", *arguments, str(packed)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # `-y -o` writes the bare numbers of one dataset
    out = packed.with_suffix(".txt")
    dump("-d", "/layers/fc/activation", "-y", "-w", "0", "-m", "%.9g", "-o", str(out))
    values = np.array(out.read_text().replace(",", " ").split(), dtype=np.float32)
    np.testing.assert_array_equal(values, opened.layers["fc"][:].ravel())
    ids = dump("-d", "/samples/id")
    assert all(f'"{sample.id}"' in ids for sample in opened.samples)
    assert "CONTIGUOUS" in dump("-p", "-H", "-d", "/layers/conv2/activation")


def test_silx_finds_each_layer_as_the_default_plot(packed: Path, opened: Archive) -> None:
    import silx.io
    from silx.io import nxdata

    with silx.io.open(str(packed)) as file:
        default = nxdata.get_default(file)
        assert default is not None
        first = next(iter(opened.layers))
        np.testing.assert_array_equal(default.signal[()], opened.layers[first][:])
        for name, layer in opened.layers.items():
            found = nxdata.NXdata(file[f"layers/{name}"])
            assert found.is_valid, found.issues
            assert found.signal_name == "activation"
            assert list(found.axes_names) == list(layer.axes)
            np.testing.assert_array_equal(found.signal[()], layer[:])


@pytest.mark.skipif(
    shutil.which("node") is None or H5WASM is None, reason="no h5wasm; .ci/run installs it"
)
def test_h5wasm_reads_the_packed_file_in_node(packed: Path, opened: Archive) -> None:
    script = """
const [module, path, layer] = process.argv.slice(1);
const h5wasm = await import(module);
await h5wasm.ready;
const file = new h5wasm.File(path, "r");
const data = file.get(`layers/${layer}/activation`);
console.log(JSON.stringify({
  layers: file.get("layers").keys(), shape: data.shape, dtype: data.dtype,
  values: Array.from(data.value), axes: file.get(`layers/${layer}`).attrs["axes"].value,
  ids: file.get("samples/id").value,
}));
"""
    assert H5WASM is not None
    library = H5WASM / "dist" / "node" / "hdf5_hl.js"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script, "--", str(library), str(packed), "conv2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    expected = opened.layers["conv2"][:]
    assert set(opened.layers) <= set(seen["layers"])
    assert seen["shape"] == list(expected.shape)
    assert seen["axes"] == ["sample", "channel", "height", "width"]
    assert seen["ids"] == [sample.id for sample in opened.samples]
    np.testing.assert_array_equal(np.array(seen["values"], dtype=np.float32), expected.ravel())


def test_layers_with_slashes_and_percents_are_in_the_index_too(tmp_path: Path) -> None:
    """HDF5 takes `%` in the names of a virtual dataset's sources for a format."""
    values = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    names = ("a/b", "100%", "%b", "../up")
    path = write_archive(
        tmp_path / "a", {name: layer_of(values + i) for i, name in enumerate(names)},
        list("abcdef"), shards=2,
    )  # fmt: skip
    verify(path)
    with Archive.open(path) as archive, h5py.File(path / "archive.h5") as index:
        for i, name in enumerate(names):
            assert (archive.layers[name][:] == values + i).all()
            assert (index[schema.activation_rows(name)][...] == values + i).all()


def test_opening_for_writing_changes_no_file(
    tiny_archive: Path, packed: Path, tmp_path: Path
) -> None:
    """HDF5 truncates the file to the end-of-file address of its superblock."""
    copied = shutil.copytree(tiny_archive, tmp_path / "a")
    files = [packed, copied / "archive.h5", *(copied / "shards").iterdir()]
    for path in files:
        before = path.read_bytes()
        for mode in ("r+", "a"):  # the latter is the default of R's hdf5r and of old h5py
            with h5py.File(path, mode) as file:
                file["samples/id"][()]
            assert path.read_bytes() == before
        assert int.from_bytes(before[40:48], "little") == len(before)
    assert len(files) == 5
    verify(packed)
    verify(copied)


@pytest.mark.parametrize("name", ["archive.h5", "shards/00001.h5", "packed.h5"])
def test_a_file_that_another_program_wrote_to_is_refused(
    name: str, tiny_archive: Path, packed: Path, run: Run
) -> None:
    folder = shutil.copytree(tiny_archive, packed.parent / "a")
    path = packed if name == packed.name else folder / name
    with h5py.File(path, "r+") as file:
        file.create_dataset("note", data=np.arange(1000))
    code, _, err = run("verify", str(packed if path == packed else folder))
    remedy = {
        "archive.h5": f"; delete it and run: featuremaps stitch {folder}",
        "shards/00001.h5": "; delete it and run the extraction again to rewrite it",
    }
    noun = "shard" if "shards" in name else "file"
    assert (code, err) == (
        1,
        f"featuremaps: error: {path}: damaged {noun} (it has no footer: it was cut off, or another "
        f"program wrote to it){remedy.get(name, '')}\n",
    )
    if name == "archive.h5":
        path.unlink()  # in an object store, nothing is overwritten
        assert run("stitch", f"archive={folder}")[0] == 0
        verify(folder)


def test_layers_are_listed_in_execution_order(tmp_path: Path) -> None:
    names = ["conv2", "conv10", *(f"block/{i}" for i in range(12, 0, -1))]
    path = archive_of(tmp_path / "a", {name: random(3, 4) for name in names}, shards=2)
    with Archive.open(path) as archive:
        files = [path / "archive.h5", path / "shards" / "00001.h5"]
        files.append(pack(archive, tmp_path / "packed.h5"))
        listed = [*archive.to_xarray()["layers"].children]
    assert listed == [name.replace("/", "%2F") for name in names]
    for path in files:
        with h5py.File(path) as file:
            assert [*file["layers"]] == listed


def test_attributes_are_numbers_and_texts(tmp_path: Path) -> None:
    """HDF5 has no boolean: netCDF leaves out h5py's enumeration, R's rhdf5 reads NA."""
    path = archive_of(tmp_path / "a", {"tokens": random(3, 4, 5)})
    plain = {h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING}
    attributes: dict[str, Any] = {}

    def look(_name: str, item: h5py.Dataset | h5py.Group) -> None:
        for name in {*item.attrs} - {"DIMENSION_LIST", "REFERENCE_LIST"}:
            assert item.attrs.get_id(name).get_type().get_class() in plain, name
            attributes[name] = item.attrs[name]

    for file in (path / "archive.h5", path / "shards" / "00000.h5"):
        with h5py.File(file) as opened:
            opened.visititems(look)
    assert (attributes["bgr"], attributes["class_token"]) == (0, 0)
