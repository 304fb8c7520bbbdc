"""Hostile files: links, shapes, nesting and crashes are refused before anything is read."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.archive.reader import Archive
from pipeline.foundation.errors import ArchiveError
from tests.conftest import REPOSITORY, Run
from tests.planting import planted


def link(name: str, target: Path) -> Callable[[h5py.File], None]:
    """Return what replaces an object by an external link."""

    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = h5py.ExternalLink(str(target), name)

    return change


@pytest.mark.parametrize("command", ["verify", "stitch", "pack", "compare", "render", "info"])
@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("archive.h5", "layers/conv1/activation"), ("archive.h5", "samples/id"),
        ("archive.h5", "filters"), ("shards/00001.h5", "layers/conv1/activation"),
        ("shards/00001.h5", "inputs/image"), ("shards/00001.h5", "samples"),
    ],
)  # fmt: skip
def test_an_external_link_is_followed_nowhere(
    tiny_archive: Path, tmp_path: Path, run: Run, command: str, where: str, name: str
) -> None:
    bad = planted(tiny_archive, tmp_path / "a", where, link(name, tiny_archive / where))
    arguments = {
        "verify": [str(bad)], "stitch": [f"archive={bad}"], "info": [str(bad)],
        "pack": [str(bad), str(tmp_path / "out.h5")], "compare": [str(bad), str(tiny_archive)],
        "render": [f"archive={bad}", "renderers=[mean_map]", "render.num_workers=0"],
    }[command]  # fmt: skip
    code, out, err = run(command, *arguments)
    # rows of a shard are read where its seal has them, whatever its names lead to
    opens_it = where == "archive.h5" or command in ("verify", "stitch")
    if command == "stitch" and where == "archive.h5":  # made anew from the shards
        assert code == 0, err
    elif opens_it:
        assert code == 1, (out, err)
        assert "is an external link" in out + err
        assert "defect" not in err
    else:
        assert code == 0, err


@pytest.mark.parametrize("command", ["verify", "stitch"])
def test_data_that_are_not_where_the_seal_says_are_named(
    tiny_archive: Path, tmp_path: Path, run: Run, command: str
) -> None:
    def moved(file: h5py.File) -> None:
        file.create_dataset("inputs/elsewhere", data=file["inputs/image"][()])
        del file["inputs/image"]
        file.move("inputs/elsewhere", "inputs/image")

    bad = planted(tiny_archive, tmp_path / "a", "shards/00000.h5", moved)
    code, _, err = run(command, f"archive={bad}" if command == "stitch" else str(bad))
    assert code == 1
    assert "00000.h5: damaged shard, /inputs/image is not where its seal says" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_nested_groups_do_not_keep_a_reader_busy(tiny_archive: Path, tmp_path: Path) -> None:
    def nested(file: h5py.File) -> None:
        place = file["layers"].id
        for _ in range(3000):
            place = h5py.h5g.create(place, b"g")

    def many(file: h5py.File) -> None:
        for number in range(120_000):
            h5py.h5g.create(file.id, str(number).encode())

    for name, change in (("nested", nested), ("many", many)):
        bad = planted(tiny_archive, tmp_path / name, "archive.h5", change)
        began = time.process_time(), os.times().children_user
        with pytest.raises(ArchiveError, match=r"rejected, it(s groups| holds)|does not end"):
            Archive.open(bad).check_index()
        assert time.process_time() - began[0] < 10
        assert os.times().children_user - began[1] < 10


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("ending", ["crash", "hang"])
def test_a_parser_that_crashes_or_hangs_is_one_line(
    tiny_archive: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    from pipeline.archive import probe

    def crashing(*_: object, **__: object) -> str:
        if ending == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        while True:
            pass

    monkeypatch.setattr(probe, "read_structure", crashing)
    monkeypatch.setattr(probe, "_CPU_SECONDS", 1)
    text = {"crash": "ended with SIGSEGV", "hang": "does not end"}[ending]
    with pytest.raises(ArchiveError, match=text):
        Archive.open(tiny_archive).check_index()


def test_the_probe_is_a_process_of_its_own_elsewhere(
    tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.archive import probe

    monkeypatch.setattr(probe.sys, "platform", "darwin")
    probe.probe(tiny_archive / "archive.h5", virtual=True)
    with pytest.raises(ArchiveError, match="takes its data from"):
        probe.probe(tiny_archive / "archive.h5", virtual=False)
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    with pytest.raises(ArchiveError, match=r"x\.h5: damaged HDF5 file"):
        probe.probe(tmp_path / "x.h5", virtual=False)


def test_the_structure_is_judged_the_same_in_this_process(
    tiny_archive: Path, tmp_path: Path
) -> None:
    from pipeline.archive.probe import read_structure

    index, shard = tiny_archive / "archive.h5", tiny_archive / "shards" / "00000.h5"
    assert read_structure(index, virtual=True) == "fine"
    assert read_structure(shard, virtual=False) == "fine"
    assert "takes its data from" in read_structure(index, virtual=False)
    assert "damaged HDF5 file" in read_structure(tiny_archive / "manifest.json", virtual=False)

    def outside(file: h5py.File) -> None:
        file.create_dataset("x", (4,), "f4", external=[("/etc/hostname", 0, 16)])

    def soft(file: h5py.File) -> None:
        file["x"] = h5py.SoftLink("/samples")

    def vast(file: h5py.File) -> None:
        file.create_dataset("x", (10**12,), "f4", chunks=(1024,))

    def large(file: h5py.File) -> None:
        file["x"] = np.zeros((3, 2**19), np.float32)

    for number, (change, text) in enumerate([
        (outside, "keeps its data in another file"), (soft, "/x is a soft link"),
        (vast, "claims 4000000000000 bytes"), (large, "fine"),
    ]):  # fmt: skip
        bad = planted(tiny_archive, tmp_path / str(number), "shards/00000.h5", change)
        assert text in read_structure(bad / "shards" / "00000.h5", virtual=False)


def test_nothing_is_unchecked_by_default() -> None:
    import inspect

    assert inspect.signature(Archive.open).parameters["check"].default is True
    for path in (REPOSITORY / "pipeline").rglob("*.py"):
        assert "check=False" not in path.read_text().replace("check=False)\n", ""), path
    assert "and for nothing else" in " ".join((Archive.trust.__doc__ or "").split())
