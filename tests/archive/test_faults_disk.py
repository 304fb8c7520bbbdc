"""Faults while writing: a full disk, a second writer, what has changed on resume."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from pipeline.archive.tools.verify import verify
from pipeline.common import atomic_files as durable
from pipeline.common.errors import ConfigError, DoesNotFitError
from pipeline.datasets.image_folder import ImageFolder
from pipeline.extraction import disk_check as fit
from pipeline.extraction.extract import extract
from pipeline.models.base import ModelBundle
from pipeline.models.tiny import TinyModel
from tests.conftest import photo, tiny_extraction
from tests.helpers.processes import SLOW, start, wait_for
from tests.helpers.stored_arrays import assert_same_arrays


def test_a_complete_archive_on_a_read_only_disk_needs_no_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_extraction(tmp_path / "a")
    extract(config)
    open_, real = os.open, os.access

    def refusing(path: Path, flags: int, *more: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and tmp_path in Path(path).parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return open_(path, flags, *more)

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    monkeypatch.setattr(Path, "write_bytes", lambda path, _: refusing(path, os.O_RDWR))
    assert extract(config).complete


def test_disk_full_is_seen_before_the_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "free_bytes", lambda _path: 1000)
    with pytest.raises(DoesNotFitError, match=r"are needed .*1\.0 kB are free"):
        extract(tiny_extraction(tmp_path / "a"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("mounting needs privileges")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_disk_full_in_the_middle_ends_with_5_and_goes_on_later(
    small_disk: Path, tmp_path: Path
) -> None:
    """Something else fills the disk during the extraction.

    The real ENOSPC of a real file system.
    """
    command = (*SLOW, "dataset.samples=96", f"hydra.run.dir={tmp_path / 'run'}")
    process = start(*command, f"archive={small_disk / 'archive'}")
    shards = small_disk / "archive" / "shards"
    wait_for(lambda: shards.is_dir() and len(list(shards.glob("0*.h5"))) >= 3, process)
    ballast = small_disk / "ballast"
    with suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(65536))
    _, err = process.communicate()
    assert process.returncode == 5, err
    assert "the disk is full" in err.splitlines()[-1]
    assert "Traceback" not in err
    finished = list(shards.glob("0*.h5"))
    assert len(finished) >= 3
    assert not list(shards.glob(".*"))
    ballast.unlink()
    process = start(*command, f"archive={small_disk / 'archive'}")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert verify(small_disk / "archive")["samples"] == 96


def test_hdf5s_errors_without_errno_count_as_a_full_disk() -> None:
    error = RuntimeError("Can't decrement id ref count (file write failed: errno = 28)")
    assert durable.is_disk_full(error)
    assert durable.is_disk_full(OSError("6144 requested and 6112 written"))  # NumPy's
    assert not durable.is_disk_full(RuntimeError("something else"))


@pytest.mark.parametrize("error", [errno.EPERM, errno.EIO])
def test_a_disk_without_hard_links_and_locks_will_do(
    tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, error: int,
) -> None:  # fmt: skip
    """As exFAT and mounted buckets have no hard links, and Lustre often no locks; SMB does not sync
    folders.
    """

    def no_link(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", files_only)
    monkeypatch.setattr(os, "link", no_link)
    extract(tiny_extraction(tmp_path / "a"))
    contents = [bytes([i]) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(partial(durable.create, tmp_path / "one"), contents))
    assert (tmp_path / "one").read_bytes() in contents
    durable.create(tmp_path / "one", b"late")
    assert (tmp_path / "one").read_bytes() in contents
    monkeypatch.setattr(fcntl, "flock", no_lock)
    extract(tiny_extraction(tmp_path / "b"))
    for name in "ab":
        assert_same_arrays(tiny_archive, tmp_path / name)
    folder = tmp_path / "b"
    said = [text for text in caplog.messages if "has no locks" in text]
    assert said == [f"{folder}: the file system has no locks; run one command at a time there"]


@pytest.mark.broad
def test_second_writer_on_the_same_archive_is_refused_across_processes(tmp_path: Path) -> None:
    command = (*SLOW, "dataset.samples=4000", f"archive={tmp_path / 'a'}")
    first = start(*command, f"hydra.run.dir={tmp_path / 'one'}")
    shards = tmp_path / "a" / "shards"
    wait_for(lambda: shards.is_dir() and bool(list(shards.iterdir())), first)
    second = start(*command, f"hydra.run.dir={tmp_path / 'two'}")
    _, err = second.communicate()
    still_running = first.returncode is None
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert still_running
    assert second.returncode == 1
    assert "another process is writing" in err


def test_changed_images_weights_or_versions_are_refused_on_resume(
    tmp_path: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = ImageFolder(root=str(photos))
    path = tmp_path / "a"
    extract(tiny_extraction(path, dataset=data))
    Image.fromarray(photo(9, (60, 44))).save(photos / "cats" / "colour.jpg")
    with pytest.raises(ConfigError, match=r"dataset\.sha256_of_contents"):
        extract(tiny_extraction(path, dataset=data))
    fresh = tmp_path / "b"
    extract(tiny_extraction(fresh, dataset=data))
    from pipeline.extraction import environment

    real = environment.versions
    monkeypatch.setattr(environment, "versions", lambda names: real(names) | {"torch": "9.9"})
    made = extract(tiny_extraction(fresh, dataset=data))  # the model does the same: said
    assert made.written == 0
    assert "versions.torch" in caplog.text
    caplog.clear()
    monkeypatch.setattr(TinyModel, "build", _doubled(TinyModel.build))
    with pytest.raises(ConfigError, match=r"model: conv1 .* versions\.torch: .* → .*9\.9"):
        extract(tiny_extraction(fresh, dataset=data))


def _doubled(build: Callable[..., ModelBundle]) -> Callable[..., ModelBundle]:
    """Return a way of building whose model returns twice as much, from the same weights."""

    def changed(source: TinyModel, seed: int) -> ModelBundle:
        built = build(source, seed)
        built.module.conv1.register_forward_hook(lambda _m, _a, output: output * 2)
        return built

    return changed
