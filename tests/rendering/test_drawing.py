"""Drawing by processes: the same pictures, errors on one line, and nobody left behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.common import object_store
from pipeline.common.errors import ArchiveError, ConfigError, RenderError
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.extraction.settings import Storage
from pipeline.renderers.grid import Grid
from pipeline.renderers.overview import Overview
from pipeline.renderers.pca import PCA
from pipeline.rendering import workers as drawing
from pipeline.rendering.picture_files import DrawnPicture
from pipeline.rendering.render import RenderOptions, render
from pipeline.rendering.workers import draw_all
from tests.conftest import tiny_extraction
from tests.helpers.processes import group_is_gone, start, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads draw elsewhere")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of enough samples for processes, in ten shards."""
    path = tmp_path_factory.mktemp("many") / "archive"
    samples = drawing._PROCESSES_FROM + 6
    extract(
        tiny_extraction(
            path, dataset=Synthetic(samples=samples, height=20, width=24),
            layers=LayerSelector(include=("conv1", "fc")), loader=Loader(batch_size=samples // 10),
            storage=Storage(shard_samples=samples // 10),
        )
    )  # fmt: skip
    return path


@pytest.fixture
def archive(many: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    monkeypatch.setattr(object_store, "in_use", lambda: False)  # another test's would mean threads
    with Archive.open(many) as opened:
        yield opened


def picture(name: str) -> list[DrawnPicture]:
    return [DrawnPicture(renderer=name, layer=None, path=Path(name))]


@pytest.mark.slow
def test_many_samples_are_drawn_by_processes_in_order(archive: Archive) -> None:
    drawn = list(draw_all(lambda s: picture(f"{s.id} {os.getpid()}"), archive.samples, 2))
    names, pids = zip(*(one.renderer.rsplit(" ", 1) for (one,) in drawn), strict=True)
    assert list(names) == [sample.id for sample in archive.samples]
    assert str(os.getpid()) not in pids
    assert len(set(pids)) <= 2  # on a busy machine the second may come too late


@pytest.mark.slow
def test_they_draw_what_one_thread_draws(archive: Archive, tmp_path: Path) -> None:
    renderers = {"grid": Grid(max_channels=4), "pca": PCA(fit="dataset"), "overview": Overview()}
    for name, workers in (("one", 0), ("many", 3)):
        render(
            archive,
            tmp_path / name,
            renderers,
            RenderOptions(samples=("all",), num_workers=workers),
        )
    one = {p.relative_to(tmp_path / "one"): p for p in (tmp_path / "one").rglob("*.png")}
    many = {p.relative_to(tmp_path / "many"): p for p in (tmp_path / "many").rglob("*.png")}
    assert len(one) == len(archive) * (2 + len(archive.layers))
    assert one.keys() == many.keys()
    assert all(one[name].read_bytes() == many[name].read_bytes() for name in one)


def test_an_error_comes_back_as_it_was(archive: Archive) -> None:
    def draw(sample: StoredSample) -> list[DrawnPicture]:
        if sample.index == 9:
            raise ConfigError("renderers.x.y: this does not fit")
        return picture(sample.id)

    drawn = draw_all(draw, archive.samples, 2)
    with pytest.raises(ConfigError, match=r"^renderers.x.y: this does not fit$"):
        for _ in range(20):
            next(drawn)


def test_a_process_that_dies_is_one_line(archive: Archive) -> None:
    def draw(sample: StoredSample) -> list[DrawnPicture]:
        if sample.index == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return picture(sample.id)

    with pytest.raises(RenderError, match="a drawing process died"):
        list(draw_all(draw, archive.samples, 2))


def test_a_damaged_shard_is_found_before_its_samples_are_drawn(many: Path) -> None:
    with Archive.open(many) as archive:
        shard = sorted((many / "shards").glob("*.h5"))[5]
        content = shard.read_bytes()
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        first = archive.manifest.shards[5][0]
        drawn: list[list[DrawnPicture]] = []

        def read_and_draw(sample: StoredSample) -> list[DrawnPicture]:
            archive.image(sample.index)
            return picture(sample.id)

        try:
            with pytest.raises(ArchiveError, match=shard.name):
                drawn.extend(draw_all(read_and_draw, archive.samples, 2))
        finally:
            shard.write_bytes(content)
    assert len(drawn) <= first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.broad),
        (signal.SIGKILL, -9),
    ],
)
def test_signals_leave_nobody_behind(
    number: signal.Signals, code: int, many: Path, tmp_path: Path
) -> None:
    """SIGINT goes to the whole group, as Ctrl-C does, the others to the parent alone."""
    words = ("render", f"archive={many}", "renderers=[overview]",
             "renderers.overview.tile_size=1000", "render.samples=all")  # fmt: skip
    process = start(*words, "render.num_workers=2", f"hydra.run.dir={tmp_path / 'run'}")
    place = tmp_path / "run" / "pictures" / "overview"
    wait_for(lambda: place.is_dir() and len(list(place.glob("0*.png"))) >= 2, process)
    (os.killpg if number is signal.SIGINT else os.kill)(process.pid, number)
    _, err = process.communicate()
    assert process.returncode == code, err
    assert "Traceback" not in err
    if number is not signal.SIGKILL:
        assert err.splitlines()[-1].startswith("featuremaps: error: ")
    group_is_gone(process.pid)
