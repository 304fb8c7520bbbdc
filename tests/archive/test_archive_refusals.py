"""What an archive refuses, skips, counts and reduces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ArchiveError, ConfigError, SampleError
from pipeline.datasets.image_folder import ImageFolder
from pipeline.extraction.extract import extract
from pipeline.extraction.reductions.pooling import SpatialMax, SpatialMean
from pipeline.extraction.reductions.subsets import ChannelSubset
from pipeline.extraction.settings import Shard, Storage
from pipeline.models.tiny import TinyModel
from tests.conftest import Run, tiny_extraction
from tests.helpers.edited_archives import edited
from tests.helpers.stored_arrays import assert_same_arrays


def test_a_lost_shard_is_named_and_made_again(tiny_archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    extract(tiny_extraction(path))
    (path / "shards" / "00001.h5").unlink()
    with pytest.raises(ArchiveError, match=r"00001\.h5: missing"):
        Archive.open(path)
    (path / "shards" / ".00001.h5.999.tmp").write_bytes(b"half a shard")
    (path / ".archive.h5.999.tmp").write_bytes(b"half an index")
    extract(tiny_extraction(path))
    assert_same_arrays(tiny_archive, path)
    assert not list(path.rglob(".*"))


def test_a_damaged_shard_is_named_never_read_as_data(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    extract(tiny_extraction(path))
    shard = path / "shards" / "00002.h5"
    with h5py.File(shard) as file:
        place = file["layers/conv1/activation"].id.get_offset()
    content = bytearray(shard.read_bytes())
    content[place + 5] ^= 0x10
    shard.write_bytes(content)
    with (
        Archive.open(path) as archive,
        pytest.raises(ArchiveError, match=r"00002\.h5: damaged"),
    ):
        for i in range(7):
            archive.layers["conv1"][i]
    (path / "COMPLETE.json").unlink()
    with pytest.raises(ArchiveError, match=r"00002\.h5: damaged shard \(at row 4 "):
        extract(tiny_extraction(path))


def test_a_shard_names_its_archive_and_is_none_elsewhere(
    run: Run, tiny_archive: Path, tmp_path: Path
) -> None:
    shards = tiny_archive / "shards"
    for path in (shards, shards / "00000.h5"):
        code, out, _ = run("info", str(path))
        assert (code, out) == run("info", str(tiny_archive))[:2]
    alone = tmp_path / "shards" / "00000.h5"
    alone.parent.mkdir()
    shutil.copy(shards / "00000.h5", alone)
    code, _, err = run("info", str(alone))
    assert (code, err) == (
        1, f"featuremaps: error: {alone}: a part of an archive; give the folder of the whole "
        "archive\n",
    )  # fmt: skip


def test_the_constructor_names_the_method_that_opens_a_path(tiny_archive: Path) -> None:
    path: Any = tiny_archive
    with pytest.raises(ConfigError, match=r"use Archive\.open\(path\)"):
        Archive(path)


def test_a_copy_names_the_file_that_cannot_be_copied(
    run: Run, tiny_archive: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_archive, source)
    shard = source / "shards" / "00001.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    code, _, err = run("copy", str(source), str(tmp_path / "out"))
    assert code == 1
    assert f"error: {shard}: " in err
    assert "checksum mismatch" in err
    shard.unlink()
    code, _, err = run("copy", str(source), str(tmp_path / "out"))
    assert code == 1
    assert f"error: {shard}: No such file" in err


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    extract(tiny_extraction(path))
    with pytest.raises(ConfigError, match=r"cannot be continued .*seed: 0 → 3"):
        extract(tiny_extraction(path, seed=3))
    with pytest.raises(ConfigError, match=r"model\.state_sha256"):
        extract(tiny_extraction(path, model=TinyModel(weights=None)))
    with pytest.raises(ConfigError, match="resume=false"):
        extract(tiny_extraction(path, resume=False))
    before = {file: file.stat().st_mtime_ns for file in (path / "shards").iterdir()}
    extract(tiny_extraction(path))
    assert before == {file: file.stat().st_mtime_ns for file in (path / "shards").iterdir()}


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="holds other files"):
        extract(tiny_extraction(tmp_path))


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    from pipeline.archive.writing import lock

    path = tmp_path / "archive"
    extract(tiny_extraction(path))
    with lock.writing(path), pytest.raises(ArchiveError, match="another process is writing"):
        extract(tiny_extraction(path))
    with (
        lock.writing(path, part=0),
        lock.writing(path, part=1),
        pytest.raises(ArchiveError, match=r"lock\.1 is held"),
    ):
        extract(tiny_extraction(path, shard=Shard(index=1, count=2)))


def test_bad_images_are_skipped_marked_and_counted(tmp_path: Path, photos: Path) -> None:
    (photos / "cats" / "brökn.jpg").write_bytes((photos / "cats" / "colour.jpg").read_bytes()[:200])
    (photos / "dogs" / "empty.png").write_bytes(b"")
    data = ImageFolder(root=str(photos))
    path = tmp_path / "archive"
    with pytest.raises(SampleError, match=r"sample 0 .*brökn\.jpg.*on_error=skip"):
        extract(tiny_extraction(path, dataset=data))
    made = extract(tiny_extraction(tmp_path / "skipping", dataset=data, on_error="skip"))
    assert made.skipped == 2
    clean = ImageFolder(root=str(photos))
    (photos / "cats" / "brökn.jpg").unlink()
    (photos / "dogs" / "empty.png").unlink()
    extract(tiny_extraction(tmp_path / "clean", dataset=clean))
    text = (tmp_path / "skipping" / "errors.jsonl").read_text()
    assert "ö" in text  # for people, too
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["id"] for line in lines] == ["cats/brökn.jpg", "dogs/empty.png"]
    with Archive.open(tmp_path / "skipping") as skipping, Archive.open(tmp_path / "clean") as good:
        rows = [sample.index for sample in skipping.samples if not sample.error]
        assert [skipping.samples[i].id for i in rows] == [sample.id for sample in good.samples]
        for name, layer in skipping.layers.items():
            for position, i in enumerate(rows):
                np.testing.assert_allclose(
                    layer[i], good.layers[name][position], rtol=1e-5, atol=1e-6
                )
            for line in lines:
                assert np.isnan(layer[line["index"]]).all()
            for figure in ("mean", "std", "min", "max", "count"):
                np.testing.assert_allclose(
                    layer.statistics[figure],
                    good.layers[name].statistics[figure],
                    rtol=1e-5,
                    atol=1e-7,
                )


def test_max_errors_stops(tmp_path: Path, photos: Path) -> None:
    for name in ("a", "b", "c"):
        (photos / f"{name}.jpg").write_text("text")
    config = tiny_extraction(
        tmp_path / "a", dataset=ImageFolder(root=str(photos)), on_error="skip", max_errors=2
    )
    with pytest.raises(SampleError, match="max_errors=2"):
        extract(config)


@pytest.mark.parametrize(
    ("reduction", "reduce"),
    [
        (SpatialMean(), lambda a: a.mean(axis=(2, 3)) if a.ndim == 4 else a),
        (SpatialMax(), lambda a: a.max(axis=(2, 3)) if a.ndim == 4 else a),
        (ChannelSubset(channels=(3, 1)), lambda a: a[:, [3, 1]]),
    ],
)
def test_reductions_equal_numpy(
    opened: Archive, tmp_path: Path, reduction: object, reduce: object
) -> None:
    extract(tiny_extraction(tmp_path / "a", reduction=reduction))
    with Archive.open(tmp_path / "a") as archive:
        for name, layer in opened.layers.items():
            whole = np.stack([layer[i] for i in range(7)])
            found = np.stack([archive.layers[name][i] for i in range(7)])
            np.testing.assert_allclose(found, reduce(whole), rtol=1e-5, atol=1e-6)  # type: ignore[operator]


def test_float16_is_float32_rounded_once(opened: Archive, tmp_path: Path) -> None:
    extract(tiny_extraction(tmp_path / "a", storage=Storage(dtype="float16")))
    with Archive.open(tmp_path / "a") as archive:
        for name, layer in opened.layers.items():
            assert archive.layers[name].dtype == np.float16
            np.testing.assert_array_equal(archive.layers[name][3], layer[3].astype(np.float16))


def test_float16_overflow_names_the_layer(tmp_path: Path) -> None:
    state = TinyModel().load().module.state_dict()
    state["conv1.weight"] *= 1e6
    torch.save(state, tmp_path / "large.pth")
    config = tiny_extraction(
        tmp_path / "a",
        model=TinyModel(weights=str(tmp_path / "large.pth")),
        storage=Storage(dtype="float16"),
    )
    with pytest.raises(ConfigError, match=r"conv1 reaches .*float16 ends at 65504"):
        extract(config)


def test_nonfinite_values_are_counted(tmp_path: Path) -> None:
    state = TinyModel().load().module.state_dict()
    state["conv1.bias"][1] = float("nan")
    torch.save(state, tmp_path / "sick.pth")
    model = TinyModel(weights=str(tmp_path / "sick.pth"))
    extract(tiny_extraction(tmp_path / "a", model=model, layers=LayerSelector(include=("conv1",))))
    with Archive.open(tmp_path / "a") as archive:
        found = archive.layers["conv1"].statistics
    np.testing.assert_array_equal(found["nonfinite_count"], [0, 7 * 256, 0, 0])
    assert np.isnan(found["mean"][1])
    assert np.isfinite(found["mean"][[0, 2, 3]]).all()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("fingerprint",), None), (("config",), None), (("command",), [1]), (("samples",), None),
        (("samples",), []), (("created",), 1), (("inputs",), "png"), (("image_shape",), [3, -1, 2]),
        (("shards",), []), (("shards",), [[0, 3], [4, 7]]), (("shards", 0, 1), 1),
        (("shards", 0, 1), 10**9), (("layers", 0, "name"), None), (("layers", 0, "alias"), []),
        (("layers", 0, "axes"), ["x", "y", "z"]), (("layers", 0, "shape"), [4]),
        (("layers", 0, "shape", 0), 10**9), (("layers", 0, "shape", 0), -1),
        (("layers", 0, "dtype"), "float31"), (("layers", 0, "drawn"), [1, 2]),
        (("layers", 1, "name"), "conv1"), (("layers", 0), 7),
    ],
)  # fmt: skip
def test_any_damage_of_a_manifest_is_one_line(
    tiny_archive: Path, tmp_path: Path, where: tuple[Any, ...], value: object
) -> None:
    path = edited(tiny_archive, tmp_path / "a") / "manifest.json"
    content = part = json.loads(path.read_text())
    for key in where[:-1]:
        part = part[key]
    if value is None and where == ("fingerprint",):
        del part[where[-1]]
    else:
        part[where[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ArchiveError, match=r"^[^\n]+$"), Archive.open(tmp_path / "a") as archive:
        archive.layers["conv1"][0]
