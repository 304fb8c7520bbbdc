"""Resuming an archive: with appended samples, its own batch size, or from the start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_extraction
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.compare import compare
from pipeline.archive.tools.verify import verify
from pipeline.cli.main import main
from pipeline.common.errors import ArchiveError, ConfigError, SampleError
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.models.tiny import TinyModel


def some(count: int | None) -> Synthetic:
    return Synthetic(samples=7, height=20, width=24, limit=count)


def stamps(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (path / "shards").glob("*.h5")}


@pytest.mark.slow
def test_a_grown_dataset_adds_shards_and_leaves_the_finished_ones(tmp_path: Path) -> None:
    path, straight = tmp_path / "grown", tmp_path / "straight"
    extract(tiny_extraction(path, dataset=some(3)))
    before = stamps(path)
    for count in (5, None):  # twice
        made = extract(tiny_extraction(path, dataset=some(count)))
        assert made.complete
        assert made.written == 2
        assert before.items() <= stamps(path).items()
    assert verify(path)["samples"] == 7
    extract(tiny_extraction(straight))
    with Archive.open(path) as grown, Archive.open(straight) as whole:
        assert [s.id for s in grown.samples] == [s.id for s in whole.samples]
        assert compare(grown, whole, rtol=1e-5, atol=1e-5)["equal"]
        assert len(grown.manifest.previous_fingerprints) == 2
        for layer in grown.layers.values():
            np.testing.assert_allclose(
                layer.statistics["mean"], whole.layers[layer.name].statistics["mean"], atol=1e-5
            )
    assert main(("pack", str(path), str(tmp_path / "grown.h5"))) == 0
    assert verify(tmp_path / "grown.h5")["samples"] == 7
    (path / "shards" / "00001.h5").unlink()
    with Archive.open_partial(path) as partial:
        assert len(partial) == 7 - 2
        partial.layers["conv1"][:]
    again = extract(tiny_extraction(path))  # rewrites one of the earlier shards
    assert again.written == 2
    assert verify(path)["samples"] == 7


def test_growth_that_comes_to_nothing_is_taken_back(tmp_path: Path) -> None:
    path, photos = tmp_path / "a", tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        Image.new("RGB", (24, 20), (60 * number, 0, 0)).save(photos / f"{number}.png")

    def images() -> FlatFolder:
        return FlatFolder(root=str(photos))

    extract(tiny_extraction(path, dataset=images()))
    (photos / "4.png").write_bytes(b"no image")
    with pytest.raises(SampleError, match=r"4\.png"):
        extract(tiny_extraction(path, dataset=images()))
    with pytest.raises(ArchiveError, match="not complete"):
        Archive.open(path)
    (photos / "4.png").unlink()
    made = extract(tiny_extraction(path, dataset=images()))
    assert (made.complete, made.written) == (True, 0)
    assert verify(path)["samples"] == 4
    with Archive.open(path) as archive:
        assert not archive.manifest.previous_fingerprints


def test_growth_is_refused_where_something_else_differs(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    extract(tiny_extraction(path, dataset=some(3)))
    with pytest.raises(ConfigError, match=r"cannot be continued .*state_sha256"):
        extract(tiny_extraction(path, model=TinyModel(weights=None)))
    other = Synthetic(samples=7, height=20, width=24, seed=1)
    with pytest.raises(ConfigError, match=r"cannot be continued .*dataset\.settings\.seed: 0 → 1"):
        extract(tiny_extraction(path, dataset=other))
    with pytest.raises(ConfigError, match=r"cannot be continued .*dataset\.samples: 3 → 2"):
        extract(tiny_extraction(path, dataset=some(2)))
    assert verify(path)["samples"] == 3


def test_the_first_other_image_of_a_folder_is_named(tmp_path: Path) -> None:
    path, photos = tmp_path / "a", tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        Image.new("RGB", (24, 20), (60 * number, 0, 0)).save(photos / f"{number}.png")
    extraction = tiny_extraction(path, dataset=FlatFolder(root=str(photos)))
    extract(extraction)
    (photos / "3.png").rename(photos / "4.png")
    with pytest.raises(ConfigError, match=r"now\): dataset: sample 3: .3\.png. → .4\.png.; data"):
        extract(extraction)
    (photos / "4.png").unlink()
    with pytest.raises(ConfigError, match=r"now\): dataset: sample 3: .3\.png. → null; dataset"):
        extract(extraction)


def test_resuming_keeps_the_archives_batch_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "archive"
    extract(tiny_extraction(path))
    values = (path / "shards" / "00001.h5").read_bytes()
    (path / "shards" / "00001.h5").unlink()
    with caplog.at_level("INFO"):
        extract(tiny_extraction(path, loader=Loader(batch_size=5, num_workers=0)))
    assert "resuming with the original batch size (2)" in caplog.text
    with Archive.open(path) as archive:
        assert archive.manifest.identity["batch_size"] == 2
    (tmp_path / "before.h5").write_bytes(values)
    assert len((path / "shards" / "00001.h5").read_bytes()) == len(values)


def test_an_archive_without_finished_shards_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    extract(tiny_extraction(path, model=TinyModel(weights=None)))
    for shard in (path / "shards").iterdir():
        shard.unlink()
    extract(tiny_extraction(path))
    extract(tiny_extraction(tmp_path / "clean"))
    with Archive.open(path) as archive, Archive.open(tmp_path / "clean") as clean:
        assert compare(archive, clean)["equal"]


def test_a_limit_is_raised_on_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("extract", "model=tiny", "dataset=synthetic", "dataset.samples=6",
             "dataset.height=24", "dataset.width=24",
             f"archive={tmp_path}/a", f"hydra.run.dir={tmp_path}")  # fmt: skip
    assert main((*words, "dataset.limit=2")) == 0
    assert main((*words, "dataset.limit=4")) == 0
    assert main(words) == 0
    capfd.readouterr()
    assert main(("verify", f"{tmp_path}/a")) == 0
    assert "6 samples" in capfd.readouterr().out
