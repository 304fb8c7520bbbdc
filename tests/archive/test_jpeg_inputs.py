"""Archives whose inputs are JPEG files: read by every reader, damaged by none of the commands."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import photo, tiny_extraction
from PIL import Image
from torch import nn

from pipeline.archive.format import schema
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.shard_check import check_shard
from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.compare import compare
from pipeline.archive.tools.pack import pack
from pipeline.archive.tools.verify import verify
from pipeline.capture.selector import LayerSelector
from pipeline.common.configured import configured
from pipeline.common.errors import ArchiveError, ConfigError
from pipeline.datasets.sequence import FromSequence
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Extraction, Storage
from pipeline.models.base import ModelBundle
from pipeline.models.tiny import TinyModel
from pipeline.models.transforms import Transform
from pipeline.rendering.views import sample_view
from tests.conftest import Run


def as_jpeg(path: Path, **changes: object) -> Extraction:
    storage = Storage(shard_samples=3, inputs="jpeg")
    return tiny_extraction(path, **({"storage": storage} | changes))


def recoded(pixels: np.ndarray) -> np.ndarray:
    """Return pixels `(height, width, …)` as Pillow gives them back out of a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, subsampling=0)
    return np.asarray(Image.open(file))


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `tiny_archive` with JPEG inputs, grown from 4 samples to 7."""
    path = tmp_path_factory.mktemp("jpegs") / "archive"
    for count in (4, 7):
        data = Synthetic(samples=7, height=20, width=24, limit=count)
        assert extract(as_jpeg(path, dataset=data)).complete
    return path


def test_pixels_are_those_of_the_jpeg_files_for_every_reader(
    jpegs: Path, tiny_archive: Path, tmp_path: Path, run: Run
) -> None:
    assert verify(jpegs)["samples"] == 7
    with Archive.open(jpegs) as archive, Archive.open(tiny_archive) as full:
        expected = [recoded(full.image(row)) for row in range(7)]
        packed = pack(archive, tmp_path / "packed.h5")
        assert compare(archive, full)["equal"]
        assert [s.pixels_sha256 for s in archive.samples] == [s.pixels_sha256 for s in full.samples]
        for row in range(7):
            np.testing.assert_array_equal(archive.image(row), expected[row])
            np.testing.assert_array_equal(
                np.asarray(Image.open(io.BytesIO(archive.jpeg(row)))), expected[row]
            )
        for row in (-1, 7):
            with pytest.raises(IndexError, match="the archive has 7"):
                archive.jpeg(row)
        view = sample_view(archive, archive.samples[3])
        assert view.has_input
        np.testing.assert_array_equal(view.image, expected[3])
        with pytest.raises(ArchiveError, match=r"storage\.inputs=full, not jpeg"):
            full.jpeg(0)
        tree = archive.to_xarray()
        blob, offset = (tree["inputs"][name].values for name in ("jpeg", "offset"))
        assert blob[offset[6] :].tobytes() == archive.jpeg(6)
    assert verify(packed)["samples"] == 7
    shards = [range(*rows) for rows in Manifest.read(jpegs).shards]
    assert len(shards) > 2
    files = [(jpegs / "shards" / f"{i:05d}.h5", rows) for i, rows in enumerate(shards)]
    for path, rows in [(jpegs / "archive.h5", range(7)), (packed, range(7)), *files]:
        with h5py.File(path) as file:
            assert "image" not in file["inputs"]
            assert file["inputs/jpeg"].attrs["quality"] == 90
            assert len(file["inputs/offset"]) == len(rows) + 1
            for i, row in enumerate(rows):
                start, stop = file["inputs/offset"][i : i + 2]
                image = Image.open(io.BytesIO(file["inputs/jpeg"][start:stop]))
                np.testing.assert_array_equal(np.asarray(image), expected[row])
    with Archive.open(packed) as archive:
        np.testing.assert_array_equal(archive.image(6), expected[6])
    assert "inputs    JPEG, quality 90" in run("info", str(jpegs))[1]


def test_the_file_says_what_its_pixels_lie_under(jpegs: Path, tmp_path: Path) -> None:
    """netCDF readers see the files, and tables that they can open."""
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(jpegs / "archive.h5") as file:
        inputs = file["inputs"]
        assert inputs["jpeg"].dtype == np.uint8
        start, stop = inputs["offset"][2:4]
        assert Image.open(io.BytesIO(bytes(inputs["jpeg"][start:stop]))).size == (16, 16)


@configured
class GreyModel(TinyModel):
    """One convolution over grey images."""

    def build(self, seed: int) -> ModelBundle:
        transform = Transform(resize=(16,), crop=(16,), mean=(0.5,), std=(0.5,))
        return ModelBundle(module=nn.Sequential(nn.Conv2d(1, 2, 3)), transform=transform)


def test_grey_and_skipped_inputs(tmp_path: Path) -> None:
    images = [photo(0), b"no image", photo(2)]
    grey = {"model": GreyModel(weights=None), "layers": LayerSelector(include=("0",))}
    data = FromSequence(items=images)
    extract(as_jpeg(tmp_path / "a", dataset=data, on_error="skip", **grey))
    assert verify(tmp_path / "a")["skipped"] == 1
    extract(tiny_extraction(tmp_path / "b", dataset=FromSequence(items=images[::2]), **grey))
    with Archive.open(tmp_path / "a") as archive, Archive.open(tmp_path / "b") as other:
        assert Image.open(io.BytesIO(archive.jpeg(0))).mode == "L"
        for row, same in ((0, 0), (2, 1)):
            grey_pixels = recoded(other.image(same)[..., 0])
            np.testing.assert_array_equal(archive.image(row), np.dstack([grey_pixels] * 3))
        assert not archive.image(1).any()


def test_it_goes_on_with_the_same_images_only(tmp_path: Path) -> None:
    images = [photo(seed) for seed in range(5)]
    path = tmp_path / "archive"
    extract(as_jpeg(path, dataset=FromSequence(items=images)))
    before = (path / "shards" / "00001.h5").read_bytes()
    (path / "COMPLETE.json").unlink()
    (path / "shards" / "00001.h5").unlink()
    other = FromSequence(items=[255 - image for image in images])
    with pytest.raises(ConfigError, match=r"made from other images: sample 0|sha256_of_contents"):
        extract(as_jpeg(path, dataset=other))
    with pytest.raises(ConfigError, match=r'storage\.inputs: "jpeg" → "full"'):
        extract(tiny_extraction(path, dataset=FromSequence(items=images)))
    assert extract(as_jpeg(path, dataset=FromSequence(items=images))).complete
    assert (path / "shards" / "00001.h5").read_bytes() == before
    assert sorted(file.name for file in (path / "shards").iterdir()) == ["00000.h5", "00001.h5"]


@pytest.mark.parametrize("table", [schema.JPEG_ROWS, schema.JPEG_OFFSETS])
def test_damage_is_named(jpegs: Path, tmp_path: Path, table: str) -> None:
    path = tmp_path / "archive"
    shutil.copytree(jpegs, path)
    shard = path / "shards" / "00000.h5"
    with h5py.File(shard) as file:
        place = file[table].id.get_offset() + 8
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"00000\.h5: damaged"):
        verify(path)
    with (
        pytest.raises(ArchiveError, match=r"00000\.h5: damaged"),
        Archive.open(path) as archive,
    ):
        archive.image(0)
    with pytest.raises(ArchiveError, match=r"00000\.h5: damaged"):
        check_shard(shard, manifest := Manifest.read(path), *manifest.shards[0])
    # Without checks, what is read is an image of the right shape, or an error.
    with Archive.open(path, check=False) as archive:
        try:
            assert archive.image(0).shape == (16, 16, 3)
        except ArchiveError as error:
            assert "00000.h5: damaged" in str(error)  # noqa: PT017


def test_what_jpeg_cannot_hold_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    words = ("model=tiny", "dataset=synthetic", "layers.include=[fc]", "device=cpu",
             "model.transform.crop=[1,65501]", "storage.inputs=jpeg")  # fmt: skip
    code, _, err = run("extract", *words)
    assert code == 2
    assert "storage.inputs=jpeg: JPEG is limited to 65500 pixels a side, got 65501; use full" in err
    assert not (tmp_path / "run" / "archive").exists()


def test_plan_estimates_it(run: Run) -> None:
    words = ("model=tiny", "dataset=synthetic", "dataset.samples=9", "layers.include=[fc]",
             "device=cpu")  # fmt: skip
    found = json.loads(run("plan", *words, "--json")[1])
    remedies = {one["override"]: one["bytes"] for one in found["remedies"]}
    smaller = json.loads(run("plan", *words, "storage.inputs=jpeg", "--json")[1])
    assert smaller["total_bytes"] == remedies["storage.inputs=jpeg"]
    assert found["inputs_bytes"] == 9 * 3 * 16 * 16
    assert smaller["inputs_bytes"] == 9 * (3 * 16 * 16 // 5)
    assert "storage.inputs=none" in {one["override"] for one in smaller["remedies"]}
    code, out, _ = run("plan", *words, "storage.inputs=jpeg")
    assert code == 0
    assert "JPEG, about" in out
