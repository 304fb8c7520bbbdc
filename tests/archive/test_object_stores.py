"""Archives in object stores: values, requests and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.archive.reading.archive import Archive
from pipeline.extraction.extract import extract
from tests.conftest import Run, tiny_extraction
from tests.helpers.object_store import BUCKET, ObjectStore

URL = f"s3://{BUCKET}/runs/1"


def same_values(one: Archive, two: Archive) -> None:
    assert list(one.layers) == list(two.layers)
    for name, layer in one.layers.items():
        np.testing.assert_array_equal(layer[:], two.layers[name][:])
        np.testing.assert_array_equal(layer.sample_max, two.layers[name].sample_max)
        for figure, values in layer.statistics.items():
            np.testing.assert_array_equal(values, two.layers[name].statistics[figure])
    for row in range(len(one)):
        np.testing.assert_array_equal(one.image(row), two.image(row))
    assert [*one.samples] == [*two.samples]


def test_an_archive_in_a_store_equals_a_local_one(s3: ObjectStore, tiny_archive: Path) -> None:
    made = extract(tiny_extraction(URL))
    assert made.complete
    assert str(made.archive) == URL
    s3.clear()
    with Archive.open(URL) as remote, Archive.open(tiny_archive) as local:
        assert remote.samples[0].id
        assert len(s3.requests) <= 4  # manifest, COMPLETE, index: whatever the number of shards
        s3.clear()
        remote.layers["conv1"][0]
        assert len(s3.requests) == 2  # the shard's end, with footer and checksums; the row
        same_values(remote, local)


@pytest.mark.slow
def test_commands_read_it(
    s3: ObjectStore, tiny_archive: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extract(tiny_extraction(URL))
    for word, place in (("remote", URL), ("local", str(tiny_archive))):
        for command in ("export", "pack"):
            assert run(command, place, f"{word}-{command}")[0] == 0
        assert run("similarity", place, "--out", f"{word}-similarity")[0] == 0
        code, out, _ = run("render", f"archive={place}", folder=f"{word}-render")
        assert code == 0, out
    for name in ("export/conv1.npy", "export/samples.csv"):
        assert Path(f"remote-{name}").read_bytes() == Path(f"local-{name}").read_bytes()
    rows = [
        [
            line.split(",")[-4:]
            for line in Path(f"{word}-similarity/similarity.csv").read_text().split()
        ]
        for word in ("remote", "local")
    ]
    assert rows[0] == rows[1]
    pictures = [path.relative_to("local-render") for path in Path("local-render").rglob("*.png")]
    assert len(pictures) > 70
    for path in pictures:
        assert Path("remote-render", path).read_bytes() == Path("local-render", path).read_bytes()
    code, out, _ = run("info", URL)
    assert code == 0
    assert f"{URL}: complete" in out
    code, out, _ = run("verify", URL)
    assert code == 0
    assert "7 samples (0 skipped)" in out
    assert "HDF5's view was not compared" in out
    assert run("compare", URL, str(tiny_archive))[0] == 0
    assert run("stitch", URL)[0] == 0
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]
