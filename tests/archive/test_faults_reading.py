"""The fault matrix, reading: torn, damaged and hostile files."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.archive.format import schema
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.shard_check import check_shard
from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.compare import compare
from pipeline.archive.tools.verify import verify
from pipeline.archive.writing import shard_writer as writer
from pipeline.capture.selector import LayerSelector
from pipeline.cli.main import main
from pipeline.common.errors import ArchiveError
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.extraction.settings import Storage
from pipeline.models.tiny import TinyModel
from scripts.synthetic_archive import layer_of, write_archive
from tests.conftest import Run, tiny_extraction
from tests.helpers.planting import planted
from tests.helpers.random_archives import archive_of

# ---------------------------------------------------------------- replay


def test_every_prefix_of_a_shards_bytes_is_rejected_or_whole(
    opened: Archive, tmp_path: Path
) -> None:
    """What a power failure may leave of a file that was not synced: a prefix, or holes of zeros."""
    whole = (opened.path / "shards" / "00000.h5").read_bytes()
    start_row, stop_row = opened.manifest.shards[0]
    path = tmp_path / "00000.h5"
    rejected = accepted = 0
    steps = sorted({*range(0, len(whole), 1024), len(whole) - 1, len(whole)})
    for length in steps:
        for content in (whole[:length], whole[:length] + bytes(len(whole) - length)):
            path.write_bytes(content)
            try:
                check_shard(path, opened.manifest, start_row, stop_row)
            except ArchiveError:
                rejected += 1
            else:
                accepted += 1
                assert_same_data(path, opened)
    print(f"replay: {rejected} prefixes rejected, {accepted} whole")  # noqa: T201
    assert rejected > 100
    assert accepted >= 2


def assert_same_data(path: Path, opened: Archive) -> None:
    with h5py.File(path) as file, h5py.File(opened.path / "shards" / "00000.h5") as good:
        for name in opened.layers:
            place = f"{schema.layer_group(name)}/activation"
            np.testing.assert_array_equal(file[place][()], good[place][()])


@pytest.mark.parametrize("flips", [25])
def test_a_shard_damaged_is_named_by_verify(opened: Archive, tmp_path: Path, flips: int) -> None:
    found = count_found_flips(opened.path, tmp_path, flips)
    assert found == flips


@pytest.mark.broad
def test_three_hundred_bit_flips(opened: Archive, tmp_path: Path) -> None:
    found = count_found_flips(opened.path, tmp_path, 300)
    print(f"bit flips: {found} of 300 named by verify")  # noqa: T201
    assert found >= 299


def count_found_flips(source: Path, tmp_path: Path, flips: int) -> int:
    archive = tmp_path / "flipped"
    shutil.copytree(source, archive)
    chance = random.Random(flips)
    found = 0
    for _ in range(flips):
        shard = archive / "shards" / f"{chance.randrange(3):05d}.h5"
        good = shard.read_bytes()
        bad = bytearray(good)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        shard.write_bytes(bad)
        try:
            verify(archive)
        except ArchiveError as error:
            found += shard.name in str(error)
        shard.write_bytes(good)
    verify(archive)
    return found


def test_verify_names_what_else_may_be_wrong(tiny_archive: Path, tmp_path: Path) -> None:
    def broken(change: Callable[[Path], object]) -> str:
        path = tmp_path / "copy"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tiny_archive, path)
        change(path)
        with pytest.raises(ArchiveError) as caught:
            verify(path)
        return str(caught.value)

    assert "00002.h5: missing; run the same extraction again" in broken(
        lambda p: (p / "shards" / "00002.h5").unlink()
    )
    assert "errors.jsonl" in broken(lambda p: (p / "errors.jsonl").write_text("{}"))
    assert "archive.h5: missing; run: featuremaps stitch" in broken(
        lambda p: (p / "archive.h5").unlink()
    )
    assert "not complete" in broken(lambda p: (p / "COMPLETE.json").unlink())
    assert "damaged" in broken(lambda p: (p / "COMPLETE.json").write_text("{"))
    assert "does not list" in broken(lambda p: (p / "COMPLETE.json").write_text(
        json.dumps(json.loads((p / "COMPLETE.json").read_text()) | {"files": {}})
    ))  # fmt: skip
    swapped = broken(lambda p: shutil.copy(p / "shards" / "00000.h5", p / "shards" / "00001.h5"))
    assert "00001.h5" in swapped


# ---------------------------------------------------------------- hostile files


def hostile(tmp_path: Path, source: Path, where: str, change: Callable[[h5py.File], None]) -> Path:
    return planted(source, tmp_path / "hostile", where, change)


ACTIVATION = "layers/conv1/activation"


def _external_link(file: h5py.File) -> None:
    del file[ACTIVATION]
    file[ACTIVATION] = h5py.ExternalLink("/etc/passwd.h5", "/x")


def _external_group(file: h5py.File) -> None:
    del file["layers"]
    file["layers"] = h5py.ExternalLink("/tmp/other.h5", "/layers")


def _soft_link(file: h5py.File) -> None:
    del file[ACTIVATION]
    file[ACTIVATION] = h5py.SoftLink("/inputs/image")


def _external_storage(file: h5py.File) -> None:
    shape = file[ACTIVATION].shape
    del file[ACTIVATION]
    file.create_dataset(
        ACTIVATION, shape, "f4", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
    )


def _foreign_source(file: h5py.File) -> None:
    shape = file[ACTIVATION].shape
    del file[ACTIVATION]
    virtual = h5py.VirtualLayout(shape, "f4")
    virtual[:] = h5py.VirtualSource("/home/user/secret.h5", "x", shape)
    file.create_virtual_dataset(ACTIVATION, virtual)


def _climbing_source(file: h5py.File) -> None:
    shape = file[ACTIVATION].shape
    del file[ACTIVATION]
    virtual = h5py.VirtualLayout(shape, "f4")
    virtual[:] = h5py.VirtualSource("shards/../../secret.h5", "x", shape)
    file.create_virtual_dataset(ACTIVATION, virtual)


@pytest.mark.parametrize(
    ("where", "change", "text"),
    [
        ("shards/00000.h5", _external_link, "an external link"),
        ("archive.h5", _external_storage, "activation is float32"),
        ("archive.h5", _climbing_source, "takes its data from 'shards/../../secret.h5'"),
        pytest.param("archive.h5", _external_group, "an external link", marks=pytest.mark.slow),
        pytest.param("shards/00000.h5", _soft_link, "a soft link", marks=pytest.mark.slow),
        pytest.param("shards/00000.h5", _external_storage, "/activation: is ",
                     marks=pytest.mark.slow),
        pytest.param("archive.h5", _foreign_source, "takes its data from '/home/user/secret.h5'",
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_hostile_hdf5_does_not_reach_a_reader_and_is_named_by_verify(
    where: str,
    change: Callable[[h5py.File], None],
    text: str,
    tiny_archive: Path,
    opened: Archive,
    tmp_path: Path,
) -> None:
    path = hostile(tmp_path, tiny_archive, where, change)
    with Archive.open(path) as archive:
        assert list(archive.samples) == list(opened.samples)
        for name, layer in opened.layers.items():
            np.testing.assert_array_equal(archive.layers[name][:], layer[:])
    with pytest.raises(ArchiveError, match="HDF5 tools would misread") as caught:
        verify(path)
    assert text in str(caught.value)


def test_native_plugins_are_not_loaded() -> None:
    program = "import os, pipeline.archive; print(os.environ['HDF5_PLUGIN_PRELOAD'])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "::"


def test_a_manifest_cannot_make_the_reader_build_anything(
    tiny_archive: Path, tmp_path: Path
) -> None:
    """`_target_` is only ever taken from the user's own configuration."""
    path = tmp_path / "a"
    shutil.copytree(tiny_archive, path)
    text = (path / "manifest.json").read_text()
    changed = text.replace('"_target_": "tiny"', '"_target_": "os.system"', 1)
    assert changed != text
    (path / "manifest.json").write_text(changed)
    before = set(sys.modules)
    with suppress(ArchiveError):
        Archive.open(path).close()
    assert set(sys.modules) == before


# ---------------------------------------------------------------- the whole and its parts


def test_float16_records_its_largest_relative_error(opened: Archive, tmp_path: Path) -> None:
    extract(tiny_extraction(tmp_path / "a", storage=Storage(dtype="float16", shard_samples=3)))
    with h5py.File(tmp_path / "a" / "archive.h5") as file:
        recorded = file["layers/conv2/activation"].attrs["max_relative_error"]
    exact = np.stack([opened.layers["conv2"][i] for i in range(7)])
    normal = np.abs(exact) >= 2.0**-14
    errors = np.abs(exact.astype(np.float16).astype(np.float32) - exact) / np.abs(exact)
    assert errors[normal].max() * (1 - 1e-4) <= recorded <= errors[normal].max() * 1.01
    assert recorded < 2.0**-11


def test_compare_names_layers_that_it_cannot_compare(tmp_path: Path, run: Run) -> None:
    live = np.ones((5, 4), np.float32)
    archive_of(tmp_path / "a", {"both": live, "cut": live, "first": live})
    archive_of(tmp_path / "b", {"both": live, "cut": live[:, :2], "second": live})
    code, out, err = run("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert (code, err) == (1, "")
    assert [line.split(maxsplit=1) for line in out.splitlines()[2:]] == [
        ["both", "0          0.00e+00  1.00000000  0"], ["cut:", "shapes (5, 4) and (5, 2)"],
        ["first:", "only in A"], ["second:", "only in B"], ["NOT", "equal"],
    ]  # fmt: skip


def test_compare_counts_other_labels(tmp_path: Path, run: Run) -> None:
    live = layer_of(np.ones((3, 4), np.float32))
    for name, labels, names in (
        ("a", [0, 1, -1], {0: "cat", 1: "dog"}), ("renumbered", [5, 2, -1], {5: "cat", 2: "dog"}),
        ("b", [0, 0, 1], {0: "cat", 1: "dog"}),
    ):  # fmt: skip
        write_archive(tmp_path / name, {"x": live}, ["i", "j", "k"], labels=labels, names=names)
    with Archive.open(tmp_path / "a") as a, Archive.open(tmp_path / "renumbered") as same:
        assert compare(a, same)["other_labels"] == []
    code, out, _ = run("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert code == 0
    assert "labels:  2 samples with different labels, first j\n" in out


def test_compare_finds_what_differs(opened: Archive, tmp_path: Path) -> None:
    other = tmp_path / "b"
    extract(tiny_extraction(other, loader=Loader(batch_size=5)))
    with Archive.open(other) as two:
        assert compare(opened, opened)["equal"]
        result = compare(opened, two, rtol=1e-4, atol=1e-5)
        assert result["equal"]
        assert result["layers"]["conv1"]["cosine"] > 0.999999
    changed = tmp_path / "c"
    extract(tiny_extraction(changed, model=TinyModel(weights=None)))
    with Archive.open(changed) as three:
        result = compare(opened, three)
        assert not result["equal"]
        a, b = opened.layers["fc"][:], three.layers["fc"][:]
        a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        expected = {
            "max_abs": np.abs(a - b).max(),
            "max_relative": np.abs(a - b).max() / np.abs(a).max(),
            "cosine": a @ b / np.linalg.norm(a) / np.linalg.norm(b),
            "outside": (a != b).sum(),
        }
        assert result["layers"]["fc"] == pytest.approx(expected, rel=1e-9)
    fewer = tmp_path / "d"
    extract(tiny_extraction(fewer, layers=LayerSelector(include=("conv1",))))
    assert compare(opened, fewer)["layers"]["fc"] == {"problem": "only in A"}
    assert compare(str(fewer), opened)["layers"]["fc"] == {"problem": "only in B"}


def test_what_compare_cannot_define_is_undefined(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A cosine with zeros is no 1, and no infinity reaches JSON."""
    live = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    zero, lost, three = np.zeros_like(live), np.full_like(live, np.nan), np.full_like(live, 3)
    holed = live.copy()
    holed[2] = np.inf
    sides: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "live_zero": (live, zero), "zero_live": (zero, live), "zeros": (zero, zero),
        "constant": (three, three), "lost": (lost, lost), "lost_live": (lost, live),
        "holed": (holed, live),
    }  # fmt: skip
    for i, name in enumerate("ab"):
        layers = {key: layer_of(values[i]) for key, values in sides.items()}
        write_archive(tmp_path / name, layers, list("vwxyz"))
    assert main(("compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json")) == 1
    said = capfd.readouterr().out
    assert "Infinity" not in said
    assert "NaN" not in said
    layers = json.loads(said)["layers"]
    largest = float(np.abs(live).max())
    for key, max_abs, relative, cosine, outside in (
        ("live_zero", largest, 1, None, 20), ("zero_live", largest, None, None, 20),
        ("zeros", 0, 0, None, 0), ("constant", 0, 0, 1, 0), ("lost", None, None, None, 0),
        ("lost_live", None, None, None, 20), ("holed", 0, 0, 1, 4),
    ):  # fmt: skip
        expected = {"max_abs": max_abs, "max_relative": relative, "cosine": cosine}
        assert layers[key] == pytest.approx({**expected, "outside": outside}), key
    assert main(("compare", str(tmp_path / "a"), str(tmp_path / "b"))) == 1
    rows = {line.split()[0]: line.split() for line in capfd.readouterr().out.splitlines() if line}
    assert rows["live_zero"][3] == "undefined"
    assert rows["zero_live"][2:4] == ["undefined", "undefined"]
    assert rows["lost"][1:] == ["undefined", "undefined", "undefined", "0"]


def test_checking_finds_rows_that_were_never_written(tiny_archive: Path, tmp_path: Path) -> None:
    """Space that was taken and not written to holds zeros; they must not pass as data."""
    path = tmp_path / "a"
    shutil.copytree(tiny_archive, path)
    shard = path / "shards" / "00001.h5"
    with h5py.File(shard) as file:
        place, size = file[ACTIVATION].id.get_offset(), file[ACTIVATION][:1].nbytes
    content = bytearray(shard.read_bytes())
    content[place + size : place + 2 * size] = bytes(size)
    shard.write_bytes(content)
    manifest = Manifest.read(path)
    start, stop = manifest.shards[1]
    with pytest.raises(ArchiveError, match=rf"damaged shard \(at row {start + 1} of /{ACTIVATION}"):
        check_shard(shard, manifest, start, stop)
    with Archive.open(path) as archive:
        archive.layers["conv1"][start]
        with pytest.raises(ArchiveError, match=rf"00001\.h5: damaged shard \(at row {start + 1} "):
            archive.layers["conv1"][start + 1]
        with pytest.raises(ArchiveError, match=rf"00001\.h5: damaged shard \(at row {start + 1} "):
            archive.layers["conv1"][:, 0]
    assert writer.check_shard is check_shard
