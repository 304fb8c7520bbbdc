"""TensorBoard events, read back by TensorBoard's own reader."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.archive.reading.archive import Archive
from pipeline.gallery.pages import THUMBNAILS
from pipeline.renderers.grid import Grid
from pipeline.renderers.overview import Overview
from pipeline.renderers.thumbnails import Thumbnails
from pipeline.renderers.top_samples import TopSamples
from pipeline.rendering.render import Rendered, render
from pipeline.rendering.tensorboard import write_events
from tests.conftest import Run


@pytest.fixture
def rendered(opened: Archive, tmp_path: Path) -> Rendered:
    """Pictures of a layer, of a sample, of the archive, and the gallery's own."""
    renderers = {
        "grid": Grid(max_channels=4),
        "overview": Overview(),
        "top_samples": TopSamples(samples=2),
    }
    return render(opened, tmp_path / "drawn", {**renderers, THUMBNAILS: Thumbnails()})


def test_every_picture_is_there_as_it_was_drawn(rendered: Rendered, tmp_path: Path) -> None:
    write_events(rendered, tmp_path / "events", step=7)
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"images": 0}).Reload()
    expected = {f"{p.renderer}/{p.title}/{p.layer}": p for p in rendered.of_archive}
    for sample in rendered.samples:
        for picture in rendered.pictures(sample):
            end = f"/{picture.layer}" if picture.layer else ""
            expected[f"{picture.renderer}/{sample.id}{end}"] = picture
    expected = {tag: p for tag, p in expected.items() if p.renderer != THUMBNAILS}
    assert set(events.Tags()["images"]) == set(expected)
    assert {p.renderer for p in expected.values()} == {"grid", "overview", "top_samples"}
    for tag, picture in expected.items():
        (event,) = events.Images(tag)
        content = (rendered.folder / picture.path).read_bytes()
        assert (event.step, event.encoded_image_string) == (7, content)
        assert (
            (event.width, event.height)
            == (
                int.from_bytes(content[16:20]),  # PNG, IHDR
                int.from_bytes(content[20:24]),
            )
        )


@pytest.mark.slow
def test_steps_come_in_order_and_the_same_step_once(rendered: Rendered, tmp_path: Path) -> None:
    for step in (20, 3, 100, 3):
        write_events(rendered, tmp_path / "events", step)
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"images": 0}).Reload()
    tag = next(tag for tag in events.Tags()["images"] if tag.startswith("overview"))
    assert [event.step for event in events.Images(tag)] == [3, 20, 100]
    assert len(list((tmp_path / "events").iterdir())) == 3


def test_the_command_writes_them(tiny_archive: Path, tmp_path: Path, run: Run) -> None:
    words = [f"archive={tiny_archive}", "renderers=[overview]", "render.step=2"]
    code, out, _ = run("render", *words, f"render.tensorboard={tmp_path / 'events'}")
    (file,) = (tmp_path / "events").iterdir()
    assert code == 0
    assert f"events:   {file}" in out
    assert "tfevents.0000000002" in file.name


@pytest.mark.parametrize("command", ["run", "render"])
def test_what_cannot_be_written_is_said_before_the_work(
    tiny_archive: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    (tmp_path / "file").write_text("not a folder")
    words = ["renderers=[overview]", *([f"archive={tiny_archive}"] if command == "render" else [])]
    code, _, err = run(command, *words, f"render.tensorboard={tmp_path / 'file'}")
    assert (code, f"render.tensorboard: {tmp_path / 'file'}: " in err) == (2, True)
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    code, _, err = run(command, *words, f"render.tensorboard={tmp_path / 'events'}")
    assert (code, "pip install 'featuremaps[tensorboard]'" in err) == (2, True)
    assert not {"archive", "pictures"} & {path.name for path in (tmp_path / "run").iterdir()}
