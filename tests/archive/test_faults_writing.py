"""The fault matrix, writing: SIGKILL, a failing N-th operation, a full disk, a second writer, a
changed configuration. Each fault is injected, and what must hold then is checked.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from pipeline.archive.format.shard_check import check_shard
from pipeline.archive.tools.verify import verify
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ArchiveError, DiskFullError
from pipeline.extraction.extract import extract
from tests.conftest import tiny_extraction
from tests.helpers.processes import SLOW, start, wait_for
from tests.helpers.stored_arrays import assert_same_arrays


def kill_and_resume(folder: Path, rounds: int, seed: int) -> int:
    """Kill the extraction at random moments after its work has started; return how often that hit.

    Each round starts the same command again; when it finishes undisturbed, the archive is put back
    to its first half so that there is work to kill.
    """
    chance = random.Random(seed)
    archive = folder / "archive"
    hits = 0
    while hits < rounds:
        process = start(*SLOW, f"archive={archive}", f"hydra.run.dir={folder / 'run'}")
        shards = archive / "shards"
        before = len(list(shards.glob("*"))) if shards.is_dir() else 0
        wait_for(
            lambda shards=shards, before=before: (
                shards.is_dir() and len(list(shards.glob("*"))) > before
            ),
            process,
        )
        time.sleep(chance.random() * 0.25)
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            hits += 1
        process.communicate()
        if (archive / "COMPLETE.json").is_file():
            (archive / "COMPLETE.json").unlink()
            for shard in sorted(shards.glob("0*.h5"))[4:]:
                shard.unlink()
    process = start(*SLOW, f"archive={archive}", f"hydra.run.dir={folder / 'run'}")
    _, err = process.communicate()
    assert process.returncode == 0, err
    return hits


def check_killed(tmp_path: Path, rounds: int) -> None:
    straight = start(*SLOW, f"archive={tmp_path / 'straight'}", f"hydra.run.dir={tmp_path / 's'}")
    _, err = straight.communicate()
    assert straight.returncode == 0, err
    hits = kill_and_resume(tmp_path, rounds, seed=rounds)
    print(f"kill test: {hits} SIGKILLs of the process group, archive equal bit for bit")  # noqa: T201
    assert_same_arrays(tmp_path / "straight", tmp_path / "archive")
    assert verify(tmp_path / "archive")["samples"] == 48
    assert not list((tmp_path / "archive" / "shards").glob(".*"))


@pytest.mark.slow
def test_sigkill_anywhere_then_the_rerun_equals_a_clean_run(tmp_path: Path) -> None:
    check_killed(tmp_path, 1)


@pytest.mark.broad
def test_thirty_sigkills(tmp_path: Path) -> None:
    check_killed(tmp_path, 32)


class Countdown:
    """Fails the N-th of all counted operations, once."""

    def __init__(self, at: int, error: int) -> None:
        self.left = at
        self.error = error
        self.hit = ""

    def __call__(self, what: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.hit = what
            raise OSError(self.error, os.strerror(self.error), what)


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Callable[[Countdown], None]:
    """Return a function that puts a countdown before every write, fsync, rename and close."""

    def install(count: Countdown) -> None:
        real_set, real_fsync, real_replace = h5py.Dataset.__setitem__, os.fsync, Path.replace
        real_close, real_write = h5py.File.close, Path.write_bytes
        real_pwrite, real_space = os.pwrite, os.posix_fallocate

        def setitem(self: h5py.Dataset, *args: object) -> None:
            count("HDF5 write")
            real_set(self, *args)

        def pwrite(*args: object) -> int:
            count("write of rows or footer")
            return real_pwrite(*args)  # type: ignore[arg-type]

        def posix_fallocate(*args: object) -> None:
            count("taking space")
            real_space(*args)  # type: ignore[arg-type]

        def fsync(descriptor: int) -> None:
            count("fsync")
            real_fsync(descriptor)

        def replace(self: Path, target: Path) -> Path:
            count("rename")
            return real_replace(self, target)

        def close(self: h5py.File) -> None:
            if self.id.valid and self.mode == "r+":
                real_close(self)
                count("HDF5 close")
            real_close(self)

        def write_bytes(self: Path, content: bytes) -> int:
            count("write")
            return real_write(self, content)

        monkeypatch.setattr(h5py.Dataset, "__setitem__", setitem)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "pwrite", pwrite)
        monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)
        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(h5py.File, "close", close)
        monkeypatch.setattr(Path, "write_bytes", write_bytes)

    return install


@pytest.mark.broad
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_failure_at_every_write_fsync_rename_and_close(
    error: int,
    operations: Callable[[Countdown], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = fail_each(range(1, 10_000), error, operations, tmp_path, monkeypatch)
    assert set(kinds) | {"taking space"} == {
        "HDF5 write", "fsync", "rename", "HDF5 close", "write", "write of rows or footer",
        "taking space",
    }  # fmt: skip
    assert sum(kinds.values()) > 60


@pytest.mark.slow
@pytest.mark.parametrize(("error", "first"), [(errno.EIO, 1), (errno.ENOSPC, 3)])
def test_failure_at_the_nth_operation(
    error: int,
    first: int,
    operations: Callable[[Countdown], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every fifth of them; `-m broad` fails each one."""
    kinds = fail_each(range(first, 10_000, 5), error, operations, tmp_path, monkeypatch)
    assert sum(kinds.values()) > 8


def fail_each(
    numbers: range,
    error: int,
    operations: Callable[[Countdown], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, int]:
    """Fail the N-th operation for each N, check what is left, resume; return kind → how many."""
    small = LayerSelector(include=("conv1", "fc"))
    clean = tmp_path / "clean"
    extract(tiny_extraction(clean, layers=small))
    kinds: dict[str, int] = {}
    for at in numbers:
        path = tmp_path / f"n{at}"
        count = Countdown(at, error)
        with monkeypatch.context() as patch:
            operations(count)
            try:
                extract(tiny_extraction(path, layers=small))
            except (ArchiveError, DiskFullError) as raised:
                seen = type(raised)
            patch.undo()
        monkeypatch.undo()
        if not count.hit:
            break
        assert seen is (DiskFullError if error == errno.ENOSPC else ArchiveError), count.hit
        kinds[count.hit] = kinds.get(count.hit, 0) + 1
        check_only_whole_files(path)
        extract(tiny_extraction(path, layers=small))  # and the same command goes on
        assert_same_arrays(clean, path)
        shutil.rmtree(path)
    print(f"fault injection, {os.strerror(error)}: {kinds}")  # noqa: T201
    return kinds


def check_only_whole_files(archive: Path) -> None:
    """Every file that has its final name is complete and right."""
    if not (archive / "manifest.json").exists():
        return
    from pipeline.archive.format.manifest import Manifest

    manifest = Manifest.read(archive)
    for shard in (archive / "shards").glob("0*.h5"):
        number = int(shard.stem)
        check_shard(shard, manifest, *manifest.shards[number])
    if (archive / "COMPLETE.json").exists():
        verify(archive)


def run_after(setup: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an extraction of the tiny model in a process that executes `setup` first."""
    program = f"""
import os, resource, sys
from pipeline.cli.main import entry
sys.argv[1:] = ["extract", "model=tiny", "dataset=synthetic", "dataset.limit=2", "device=cpu",
                "archive={folder / "archive"}", "hydra.run.dir={folder / "run"}"]
{setup}
entry()
"""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_limit_of_file_sizes_is_one_line(tmp_path: Path) -> None:
    """HDF5 cannot write the rest of its file: it reported each object, and crashed at exit."""
    result = run_after("resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))", tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"featuremaps: error: {tmp_path}/archive/shards/00000.h5: writing failed: the file system "
        "or `ulimit -f` allows no file of this size; set a smaller storage.shard_samples, or use "
        "another folder"
    ]
    assert not list((tmp_path / "archive/shards").iterdir())


def test_a_log_on_a_full_disk_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "featuremaps.log").symlink_to("/dev/full")
    result = run_after("sys.argv.append('loader.batch_size=0')", tmp_path)
    assert (result.returncode, result.stderr) == (
        2, "featuremaps: error: loader.batch_size: must be at least 1, got 0\n"
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_stream_is_not_needed(name: str, tmp_path: Path) -> None:
    result = run_after(f"sys.{name} = None", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "archive/COMPLETE.json").is_file()
