"""Hostile files: what their HDF5 structure says reaches no reader; `verify` names it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.reading import hdf5_check
from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.hdf5_check import check_hdf5_view
from pipeline.archive.tools import hdf5_view
from pipeline.common.errors import ArchiveError
from tests.conftest import REPOSITORY, Run
from tests.helpers.planting import planted


def link(name: str, target: Path) -> Callable[[h5py.File], None]:
    """Return what replaces an object by an external link."""

    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = h5py.ExternalLink(str(target), name)

    return change


_LINKS = (
    ("archive.h5", "layers/conv1/activation"), ("archive.h5", "samples/id"),
    ("shards/00001.h5", "inputs/image"), ("shards/00001.h5", "samples"),
)  # fmt: skip
_COMMANDS = ("verify", "stitch", "pack", "compare", "render", "info")


@pytest.mark.parametrize(
    ("command", "where", "name"),
    [
        pytest.param(
            command, *link,
            marks=[pytest.mark.slow] if (i + j) % 4 else [],
        )
        for i, command in enumerate(_COMMANDS) for j, link in enumerate(_LINKS)
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
    if command == "verify":
        assert code == 1, (out, err)
        assert "is an external link" in err
        assert "defect" not in err
    else:  # everything is read where the footer has it
        assert code == 0, err


def test_data_that_are_not_where_the_footer_says_are_named(
    tiny_archive: Path, tmp_path: Path, run: Run
) -> None:
    def moved(file: h5py.File) -> None:
        file.create_dataset("inputs/elsewhere", data=file["inputs/image"][()])
        del file["inputs/image"]
        file.move("inputs/elsewhere", "inputs/image")

    bad = planted(tiny_archive, tmp_path / "a", "shards/00000.h5", moved)
    code, _, err = run("verify", str(bad))
    assert code == 1
    assert "misread this file: /inputs/image: is at another offset" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_nested_groups_do_not_keep_verify_busy(tiny_archive: Path, tmp_path: Path) -> None:
    def nested(file: h5py.File) -> None:
        group = file["layers"].id
        for _ in range(3000):
            group = h5py.h5g.create(group, b"g")

    def many(file: h5py.File) -> None:
        for number in range(120_000):
            h5py.h5g.create(file.id, str(number).encode())

    for name, change in (("nested", nested), ("many", many)):
        bad = planted(tiny_archive, tmp_path / name, "archive.h5", change)
        began = os.times().children_user
        with pytest.raises(ArchiveError, match=r"more than|cannot read its structure"):
            check_hdf5_view([ArchiveFile(bad / "archive.h5")])
        assert os.times().children_user - began < 15


@pytest.mark.parametrize("ending", ["crash", "hang"])
def test_a_parser_that_crashes_or_hangs_is_one_line(
    tiny_archive: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """The second of two files makes HDF5 crash, or loop for ever."""
    death = {"crash": "import os; os.kill(os.getpid(), 11)", "hang": "while True: pass"}[ending]
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_CPU, (1, 2)); "
        f"print('\"\"', flush=True)\n{death}"
    )
    real = subprocess.run
    monkeypatch.setattr(
        hdf5_check.subprocess, "run",
        lambda command, **options: real([sys.executable, "-c", program], **options),
    )  # fmt: skip
    files = [
        ArchiveFile(tiny_archive / "archive.h5"),
        ArchiveFile(tiny_archive / "shards/00000.h5"),
    ]
    with pytest.raises(ArchiveError, match=r"00000\.h5: damaged; HDF5 cannot read its structure"):
        check_hdf5_view(files)


def test_the_view_is_that_of_the_footer(tiny_archive: Path, tmp_path: Path) -> None:
    for name in ("archive.h5", "shards/00000.h5"):
        assert hdf5_view.compare(tiny_archive / name) == ""
    assert "has no footer" in hdf5_view.compare(tiny_archive / "manifest.json")

    def other(name: str) -> Callable[[h5py.File], None]:
        def change(file: h5py.File) -> None:
            data = file[name]
            data[0] = b"other" if data.dtype.kind == "O" else data[0] + 1

        return change

    for number, (where, name) in enumerate([
        ("shards/00000.h5", "layers/conv1/activation"), ("shards/00000.h5", "samples/id"),
        ("archive.h5", "samples/label"), ("archive.h5", "layers/conv1/statistics/mean"),
        ("archive.h5", "filters/conv1"),
    ]):  # fmt: skip
        bad = planted(tiny_archive, tmp_path / str(number), where, other(name))
        assert "other values" in hdf5_view.compare(bad / where), name


def test_nothing_is_unchecked_by_default() -> None:
    import inspect

    assert inspect.signature(Archive.open).parameters["check"].default is True
    for path in (REPOSITORY / "pipeline").rglob("*.py"):
        ours = path.read_text().replace("text=True, check=False,", "")
        assert "check=False" not in ours, path


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.h5")
    began = time.monotonic()
    with pytest.raises(ArchiveError, match="not a regular file"):
        ArchiveFile(tmp_path / "x.h5")
    assert time.monotonic() - began < 60
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
