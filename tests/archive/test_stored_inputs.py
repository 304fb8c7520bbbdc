"""Archives without the pixels of their inputs: everything else is the same, and clear."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import photo, tiny_extraction
from starlette.testclient import TestClient

from pipeline.archive.format.manifest import Manifest
from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.compare import compare
from pipeline.archive.tools.pack import pack
from pipeline.archive.tools.verify import verify
from pipeline.common.errors import ArchiveError, ConfigError
from pipeline.datasets.sequence import FromSequence
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Extraction, Storage
from tests.conftest import Run


def without(path: Path, **changes: object) -> Extraction:
    storage = Storage(shard_samples=3, inputs="none")
    return tiny_extraction(path, **({"storage": storage} | changes))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `tiny_archive` without inputs."""
    path = tmp_path_factory.mktemp("bare") / "archive"
    extract(without(path))
    return path


@pytest.mark.slow
def test_all_but_the_pixels_is_as_with_them(
    bare: Path, tiny_archive: Path, tmp_path: Path, run: Run
) -> None:
    assert verify(bare)["samples"] == 7
    for file in (bare / "archive.h5", bare / "shards" / "00000.h5"):
        with h5py.File(file) as hdf5:
            assert "image" not in hdf5["inputs"]
            assert "checksum" not in hdf5["inputs"]
            assert hdf5["inputs"].attrs["mean"].shape == (3,)
    packed = tmp_path / "packed.h5"
    with Archive.open(bare) as archive, Archive.open(tiny_archive) as full:
        result = compare(archive, full)
        assert (result["equal"], result["other_pixels"]) == (True, [])
        assert archive.samples[0].pixels_sha256 == full.samples[0].pixels_sha256
        assert (archive.has_inputs, full.has_inputs) == (False, True)
        with pytest.raises(ArchiveError, match=r"holds no inputs .*storage\.inputs=full"):
            archive.image(0)
        pack(archive, packed)
        sizes = [sum(f.stat().st_size for f in p.rglob("*.h5")) for p in (bare, tiny_archive)]
        assert sizes[1] - sizes[0] >= 7 * 3 * 16 * 16
        assert "activation" in archive.to_xarray()["layers/conv1"]
    assert verify(packed)["samples"] == 7
    assert "inputs    not stored" in run("info", str(bare))[1]
    (tmp_path / "again").mkdir()
    assert run("reproduce", str(bare), str(tmp_path / "again" / "archive"))[0] == 0
    assert Manifest.read(tmp_path / "again" / "archive").inputs == "none"


def test_pictures_come_without_input(bare: Path, tiny_archive: Path) -> None:
    from pipeline.renderers.mean_map import MeanMap
    from pipeline.renderers.overview import Overview
    from pipeline.renderers.pca import PCA
    from pipeline.renderers.thumbnails import Thumbnails
    from pipeline.rendering.views import sample_view

    with Archive.open(bare) as archive, Archive.open(tiny_archive) as full:
        view, whole = (sample_view(one, one.samples[0]) for one in (archive, full))
        assert (view.has_input, whole.has_input) == (False, True)
        for renderer in (MeanMap(), PCA(), Overview()):
            titles = [
                {text.text for text in next(renderer.draw(one)).drawing.texts}
                for one in (view, whole)
            ]
            assert ("input" in titles[0], "input" in titles[1]) == (False, True)
        alone = next(MeanMap(input=False).draw(whole)).rgb
        assert np.array_equal(next(MeanMap().draw(view)).rgb, alone)
        strips = [next(Thumbnails().draw(one)).rgb for one in (view, whole)]
        assert len(np.unique(strips[0][:, :96])) == 1
        assert np.array_equal(strips[0][:, 96:], strips[1][:, 96:])


def test_every_renderer_draws_it(bare: Path, tmp_path: Path, run: Run) -> None:
    words = ("renderers=[grid,mean_map,pca,overview,top_samples,histogram,compare]",
             f"renderers.compare.archives=[{bare}]", "render.samples=[0]",
             "render.num_workers=1")  # fmt: skip
    code, _, err = run("render", f"archive={bare}", *words)
    assert code == 0, err
    assert len(list((tmp_path / "run" / "pictures").iterdir())) >= 7


def test_a_map_is_not_laid_over_an_input_that_is_not_stored(
    bare: Path, tmp_path: Path, run: Run
) -> None:
    words = (f"archive={bare}", "renderers=[mean_map]", "renderers.mean_map.overlay=0.5")
    code, _, error = run("render", *words, f"hydra.run.dir={tmp_path / 'out'}")
    assert code == 2
    assert "renderers.mean_map.overlay: the archive holds no inputs; leave it out" in error


def test_the_explorer_shows_a_blank(bare: Path) -> None:
    from pipeline.explorer.app import make_app
    from pipeline.explorer.collection import Collection
    from pipeline.explorer.middleware import AuthMiddleware

    with (
        Archive.open(bare) as archive,
        TestClient(
            AuthMiddleware(make_app(collection := Collection([archive])), "t", 80),
            base_url="http://127.0.0.1:80",
        ) as client,
    ):
        client.get("/?token=t")
        (key,) = collection.archive_views
        for path in ("sample/0", "layer/conv1", "layer/conv1/unit/0", "at/0/conv1?y=1&x=2",
                     "draw/photo.png?sample=0", "draw/crop.png?sample=0&layer=conv1&y=1&x=2",
                     "draw/overview.png?sample=0&layer=conv1"):  # fmt: skip
            answer = client.get(f"/a/{key}/{path}")
            assert answer.status_code == 200, (path, answer.text[:300])


def test_it_goes_on_with_the_same_images_only(tmp_path: Path) -> None:
    images = [photo(seed) for seed in range(5)]
    path = tmp_path / "archive"

    def data(items: list[np.ndarray]) -> FromSequence:
        return FromSequence(items=items)

    extract(without(path, dataset=data(images)))
    (path / "COMPLETE.json").unlink()
    (path / "shards" / "00001.h5").unlink()
    with pytest.raises(ConfigError, match=r"made from other images: sample 0|sha256_of_contents"):
        extract(without(path, dataset=data([255 - image for image in images])))
    with pytest.raises(ConfigError, match=r'storage\.inputs: "none" → "full"'):
        extract(tiny_extraction(path, dataset=data(images)))
    assert extract(without(path, dataset=data(images))).complete
    assert verify(path)["samples"] == 5


def test_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    for count in (3, 5):
        data = Synthetic(samples=7, height=20, width=24, limit=count)
        assert extract(without(path, dataset=data)).complete
    assert verify(path)["samples"] == 5


@pytest.mark.slow
def test_plan_says_what_makes_it_fit_and_how_long_it_takes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.extraction import disk_check as fit

    words = ("model=tiny", "dataset=synthetic", "dataset.samples=9", "layers.include=[conv1,fc]",
             "device=cpu")  # fmt: skip
    code, out, err = run("plan", *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["seconds_per_sample"] > 0
    remedies = {one["override"]: one["bytes"] for one in found["remedies"]}
    assert [*remedies.values()] == sorted(remedies.values())
    assert found["total_bytes"] - remedies["storage.inputs=none"] == found["inputs_bytes"]
    for key, nbytes in remedies.items():
        smaller = json.loads(run("plan", *words, key, "--json")[1])
        assert smaller["total_bytes"] == nbytes, key
        assert key not in {one["override"] for one in smaller["remedies"]}
    monkeypatch.setattr(fit, "free_bytes", lambda _: 1000)
    code, out, _ = run("plan", *words)
    assert code == 3
    assert "DOES NOT FIT" in out
    assert "storage.inputs=none" in out
    assert "for the model on cpu (measured with noise)" in out
    code, _, err = run("extract", *words)
    assert code == 3
    assert "keep less: " in err
    assert "storage.inputs=none (" in err
