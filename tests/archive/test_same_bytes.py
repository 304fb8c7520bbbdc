"""The same command makes the same files, byte for byte, whenever it runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

import h5py
import pytest

from pipeline.archive.format import schema
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.export import export
from pipeline.archive.tools.export_files import Target
from pipeline.archive.tools.pack import pack
from pipeline.archive.writing.row_writer import CompressedWriter
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Storage
from tests.conftest import tiny_extraction


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_an_archive_made_again_is_the_same_bytes(tmp_path: Path) -> None:
    extractions = {
        "plain": tiny_extraction(tmp_path / "archive"),
        "gzip": tiny_extraction(tmp_path / "archive", storage=Storage(codec="gzip")),
    }
    for name, extraction in extractions.items():
        extract(extraction)
        (tmp_path / "archive").rename(tmp_path / f"{name}-1")
    first = {
        name: make_files(tmp_path / f"{name}-1", tmp_path / f"{name}-a") for name in extractions
    }
    time.sleep(1.1)  # HDF5 and the manifest count seconds
    for name, extraction in extractions.items():
        again = tmp_path / f"{name}-2"
        extract(extraction)
        (tmp_path / "archive").rename(again)
        assert make_files(tmp_path / f"{name}-1", tmp_path / f"{name}-b") == first[name]
        old, new = contents(tmp_path / f"{name}-1"), contents(again)
        different = {path for path in old if old[path] != new[path]}
        assert old.keys() == new.keys()
        assert different <= {"manifest.json", "COMPLETE.json"}  # the time, and the digest of it
        one, two = (Manifest.read(tmp_path / f"{name}-{i}") for i in (1, 2))
        assert one.created != two.created
        assert one.fingerprint == two.fingerprint


def test_compressed_layers_are_written_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set's order depends on the process, and so would the offsets of chunks."""
    written: list[str] = []
    write = CompressedWriter.write

    def noted(self: CompressedWriter, dataset: h5py.Dataset, *rest: Any) -> None:
        written.append(dataset.name)
        write(self, dataset, *rest)

    monkeypatch.setattr(CompressedWriter, "write", noted)
    extract(tiny_extraction(tmp_path / "a", storage=Storage(codec="gzip")))
    layers = Manifest.read(tmp_path / "a").layers
    names = [schema.activation_rows(layer.name) for layer in layers]
    assert len(names) > 5
    assert [name for name in written if name in names] == names * (len(written) // len(names))


def make_files(archive: Path, out: Path) -> dict[str, bytes]:
    """Return what is made of an archive: packed, and exported."""
    out.mkdir()
    with Archive.open(archive) as opened:
        pack(opened, out / "packed.h5")
        for target in get_args(Target):
            export(opened, out / str(target), target)
    with Archive.open(out / "packed.h5") as packed:
        assert packed.manifest.created
    return contents(out)
