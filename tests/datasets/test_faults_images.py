"""The fault matrix, images: one folder with every bad picture there is, as whole runs."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import SampleError
from pipeline.datasets.csv import CsvFile
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from tests.conftest import Run, photo, tiny_extraction


def bomb() -> bytes:
    """Return a PNG of 77 bytes that declares 40,000 × 40,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


BAD = {  # file name → what its error says
    "bomb.png": "max_pixels=",
    "deep16.png": "more than 8 bits",
    "empty.jpg": "the file is empty",
    "moving.gif": "frames",
    "pipe.jpg": "not a regular file",
    "text.jpg": "not an image",
    "truncated.jpg": "truncated",
    "truncated.png": "",
}
GOOD = ["cmyk.jpg", "palette_alpha.png", "plain.png", "turned.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one picture of every bad kind, and the odd kinds that are fine."""
    folder = tmp_path / "bad photos"
    folder.mkdir()
    colour = Image.fromarray(photo(1, (64, 48)))
    (folder / "bomb.png").write_bytes(bomb())
    grey = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20
    Image.fromarray(grey).save(folder / "deep16.png")
    (folder / "empty.jpg").touch()
    colour.save(
        folder / "moving.gif", save_all=True, append_images=[Image.fromarray(photo(2, (64, 48)))]
    )
    os.mkfifo(folder / "pipe.jpg")
    (folder / "text.jpg").write_text("not a photo at all")
    for name in ("truncated.jpg", "truncated.png"):
        colour.save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:-900])
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.convert("P").save(folder / "palette_alpha.png", transparency=0)
    colour.save(folder / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(folder / "turned.jpg", exif=exif)
    return folder


def command(folder: Path, archive: Path) -> list[str]:
    return [
        "model=tiny", "dataset=flat_folder", f"dataset.root={folder}", f"archive={archive}",
        "device=cpu", "loader.num_workers=2", "loader.batch_size=3",
    ]  # fmt: skip


def test_bad_images_of_every_kind_are_recorded_skips(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    (folder / "pipe.jpg").unlink()  # folders list regular files only; see the list below
    code, _, err = run("extract", *command(folder, tmp_path / "a"), "on_error=skip")
    assert code == 4, err
    bad = {name: text for name, text in BAD.items() if name != "pipe.jpg"}
    text = (tmp_path / "a" / "errors.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [Path(line["path"]).name for line in lines] == sorted(bad)
    for line in lines:
        assert bad[Path(line["path"]).name] in line["error"], line
    with Archive.open(tmp_path / "a") as archive:
        names = [Path(sample.path).name for sample in archive.samples]
        assert names == sorted([*bad, *GOOD])
        layer = archive.layers["conv1"]
        for i, name in enumerate(names):
            assert bool(archive.samples[i].error) == (name in bad)
            if name in GOOD:
                assert np.isfinite(layer[i]).all()


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_image_stops_the_extraction(folder: Path, tmp_path: Path, name: str) -> None:
    """Also the pipe, which must not hang: a list of files may name anything."""
    (tmp_path / "list.csv").write_text(f"path\nplain.png\n{name}\n")
    config = tiny_extraction(
        tmp_path / "a", dataset=CsvFile(path=str(tmp_path / "list.csv"), root=str(folder)),
        loader=Loader(batch_size=3, num_workers=2 if name == "pipe.jpg" else 0),
    )  # fmt: skip
    with pytest.raises(SampleError, match=rf"^sample 1 \(.*{BAD[name]}.*on_error=skip") as caught:
        extract(config)
    assert str(caught.value).count(name) == 1


def test_a_skipped_name_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a\nb\x1b[31m.png").touch()
    config = tiny_extraction(tmp_path / "a", dataset=FlatFolder(root=tmp_path), on_error="skip")
    extract(config)
    (message,) = [text for text in caplog.messages if "skipped" in text]
    assert message == f"skipped sample 0 ({tmp_path}/a b [31m.png): the file is empty"


def test_a_bad_image_stops_the_command_with_one_line(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    (folder / "pipe.jpg").unlink()
    code, _, err = run("extract", *command(folder, tmp_path / "a"))
    assert code == 1
    assert err.splitlines()[-1].startswith("featuremaps: error: sample 0 (")
    assert "Traceback" not in err


def test_max_errors_stops_a_run_that_skips_too_much(run: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "pipe.jpg").unlink()
    code, _, err = run("extract", *command(folder, tmp_path / "a"), "on_error=skip", "max_errors=3")
    assert code == 1
    assert "more than max_errors=3 samples" in err.splitlines()[-1]
