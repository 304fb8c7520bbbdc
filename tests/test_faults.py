"""The fault matrix: each fault is injected, and what must hold then is checked.

Rows of the matrix are named in the tests: SIGKILL anywhere, failure at the N-th operation, disk
full, second writer, changed configuration, damaged shard, bad image, non-finite activation, layers
that cannot be kept (test_selection), dying and hanging workers, signals, hostile names
(test_gallery), hostile HDF5 and checkpoints.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline import capacity, durable
from pipeline.archive import schema, writer
from pipeline.archive.compare import compare
from pipeline.archive.digest import check_digest, write_digest
from pipeline.archive.reader import Archive
from pipeline.archive.verify import verify
from pipeline.archive.writer import check_shard
from pipeline.datasets.base import ImageDataset, Images, Sample
from pipeline.datasets.image_folder import ImageFolder
from pipeline.errors import ArchiveError, ConfigError, DiskFullError, DoesNotFitError, SampleError
from pipeline.execution import Storage, StoredType
from pipeline.extract import extract
from pipeline.layers import LayerSelector
from pipeline.loader import Loader
from pipeline.models.tiny import TinyModel
from tests.conftest import REPOSITORY, photo, tiny_extraction
from tests.test_archive import assert_same_arrays

# ---------------------------------------------------------------- SIGKILL anywhere

SLOW = (
    "extract", "model=tiny", "dataset=synthetic", "dataset.samples=48", "dataset.height=160",
    "dataset.width=160", "loader.batch_size=2", "storage.shard_samples=4", "device=cpu",
)  # fmt: skip


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    """Start the command line in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=REPOSITORY,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until `condition` holds or the process is over."""
    while not condition() and process.poll() is None:
        time.sleep(0.002)


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
        if process.poll() is None:
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


def test_sigkill_anywhere_then_the_rerun_equals_a_clean_run(tmp_path: Path) -> None:
    check_killed(tmp_path, 1)


@pytest.mark.broad
def test_thirty_sigkills(tmp_path: Path) -> None:
    check_killed(tmp_path, 32)


# ---------------------------------------------------------------- failure at the N-th operation


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
        real_close, real_link, real_write = h5py.File.close, os.link, Path.write_bytes

        def setitem(self: h5py.Dataset, *args: object) -> None:
            count("HDF5 write")
            real_set(self, *args)

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

        def link(*args: object) -> None:
            count("link")
            real_link(*args)  # type: ignore[arg-type]

        def write_bytes(self: Path, content: bytes) -> int:
            count("write")
            return real_write(self, content)

        monkeypatch.setattr(h5py.Dataset, "__setitem__", setitem)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(h5py.File, "close", close)
        monkeypatch.setattr(os, "link", link)
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
    assert set(kinds) == {"HDF5 write", "fsync", "rename", "HDF5 close", "link", "write"}
    assert sum(kinds.values()) > 100


@pytest.mark.parametrize(("error", "first"), [(errno.EIO, 1), (errno.ENOSPC, 6)])
def test_failure_at_the_nth_operation(
    error: int,
    first: int,
    operations: Callable[[Countdown], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every eleventh of them; `-m broad` fails each one."""
    kinds = fail_each(range(first, 10_000, 11), error, operations, tmp_path, monkeypatch)
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
    from pipeline.archive.manifest import Manifest

    manifest = Manifest.read(archive)
    for shard in (archive / "shards").glob("0*.h5"):
        number = int(shard.stem)
        check_shard(shard, manifest, *manifest.shards[number])
    if (archive / "COMPLETE.json").exists():
        verify(archive)


# ---------------------------------------------------------------- replay


def test_every_prefix_of_a_shards_bytes_is_rejected_or_whole(
    opened: Archive, tmp_path: Path
) -> None:
    """What a power failure may leave of a file that was not synced: a prefix, or holes of zeros."""
    whole = (opened.path / "shards" / "00000.h5").read_bytes()
    start_row, stop_row = opened.manifest.shards[0]
    path = tmp_path / "00000.h5"
    shutil.copy(opened.path / "shards" / "00000.h5.sha256", tmp_path)
    rejected = accepted = 0
    steps = sorted({*range(0, len(whole), 1024), len(whole) - 1, len(whole)})
    for length in steps:
        for content in (whole[:length], whole[:length] + bytes(len(whole) - length)):
            path.write_bytes(content)
            try:
                check_digest(path)
                check_shard(path, opened.manifest, start_row, stop_row)
            except ArchiveError:
                rejected += 1
            else:
                accepted += 1
                assert_same_data(path, opened)
    print(f"replay: {rejected} prefixes rejected, {accepted} whole")  # noqa: T201
    assert rejected > 100
    assert accepted >= 2


def assert_same_data(path: Path, opened: Archive) -> None:
    with h5py.File(path) as file, h5py.File(opened.path / "shards" / "00000.h5") as good:
        for name in opened.layers:
            place = f"{schema.layer_group(name)}/activation"
            np.testing.assert_array_equal(file[place][()], good[place][()])


@pytest.mark.parametrize("flips", [25])
def test_a_shard_damaged_is_named_by_verify(opened: Archive, tmp_path: Path, flips: int) -> None:
    found = count_found_flips(opened.path, tmp_path, flips)
    assert found == flips


@pytest.mark.broad
def test_three_hundred_bit_flips(opened: Archive, tmp_path: Path) -> None:
    found = count_found_flips(opened.path, tmp_path, 300)
    print(f"bit flips: {found} of 300 named by verify")  # noqa: T201
    assert found >= 299


def count_found_flips(source: Path, tmp_path: Path, flips: int) -> int:
    archive = tmp_path / "flipped"
    shutil.copytree(source, archive)
    chance = random.Random(flips)
    found = 0
    for _ in range(flips):
        shard = archive / "shards" / f"{chance.randrange(3):05d}.h5"
        good = shard.read_bytes()
        bad = bytearray(good)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        shard.write_bytes(bad)
        try:
            verify(archive)
        except ArchiveError as error:
            found += shard.name in str(error)
        shard.write_bytes(good)
    verify(archive)
    return found


def test_verify_names_what_else_may_be_wrong(tiny_archive: Path, tmp_path: Path) -> None:
    def broken(change: Callable[[Path], object]) -> str:
        path = tmp_path / "copy"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tiny_archive, path)
        change(path)
        with pytest.raises(ArchiveError) as caught:
            verify(path)
        return str(caught.value)

    assert "00002.h5: missing" in broken(lambda p: (p / "shards" / "00002.h5").unlink())
    assert "errors.jsonl" in broken(lambda p: (p / "errors.jsonl").write_text("{}"))
    assert "archive.h5: missing" in broken(lambda p: (p / "archive.h5").unlink())
    assert "not complete" in broken(lambda p: (p / "COMPLETE.json").unlink())
    assert "damaged" in broken(lambda p: (p / "COMPLETE.json").write_text("{"))
    assert "does not list" in broken(lambda p: (p / "COMPLETE.json").write_text(
        json.dumps(json.loads((p / "COMPLETE.json").read_text()) | {"files": {}})
    ))  # fmt: skip
    swapped = broken(lambda p: shutil.copy(p / "shards" / "00000.h5", p / "shards" / "00001.h5"))
    assert "00001.h5" in swapped


# ---------------------------------------------------------------- disk full


def test_disk_full_is_seen_before_the_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "free_bytes", lambda _path: 1000)
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
    assert not durable.is_disk_full(RuntimeError("something else"))


# ---------------------------------------------------------------- second writer


@pytest.mark.broad
def test_second_writer_on_the_same_archive_is_refused_across_processes(tmp_path: Path) -> None:
    command = (*SLOW, "dataset.samples=4000", f"archive={tmp_path / 'a'}")
    first = start(*command, f"hydra.run.dir={tmp_path / 'one'}")
    shards = tmp_path / "a" / "shards"
    wait_for(lambda: shards.is_dir() and bool(list(shards.iterdir())), first)
    second = start(*command, f"hydra.run.dir={tmp_path / 'two'}")
    _, err = second.communicate()
    still_running = first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert still_running
    assert second.returncode == 1
    assert "another process is writing" in err


# ---------------------------------------------------------------- changed on resume


def test_changed_images_weights_or_versions_are_refused_on_resume(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ImageFolder(root=str(photos))
    path = tmp_path / "a"
    extract(tiny_extraction(path, dataset=data))
    Image.fromarray(photo(9, (60, 44))).save(photos / "cats" / "colour.jpg")
    with pytest.raises(ConfigError, match=r"dataset\.sha256_of_contents"):
        extract(tiny_extraction(path, dataset=data))
    fresh = tmp_path / "b"
    extract(tiny_extraction(fresh, dataset=data))
    from pipeline import environment

    real = environment.versions
    monkeypatch.setattr(environment, "versions", lambda names: real(names) | {"torch": "9.9"})
    with pytest.raises(ConfigError, match=r"versions\.torch: .* → .*9\.9"):
        extract(tiny_extraction(fresh, dataset=data))


# ---------------------------------------------------------------- workers


class Troubled(ImageDataset):
    """Images whose third item does what `deed` says, in the worker."""

    def __init__(self, deed: str) -> None:
        object.__setattr__(self, "deed", deed)
        object.__setattr__(self, "limit", None)

    def open(self) -> Images:
        return TroubledImages(self.deed)  # type: ignore[attr-defined]


class TroubledImages:
    def __init__(self, deed: str) -> None:
        self.deed = deed
        self.samples = [Sample(id=str(i)) for i in range(6)]

    def read(self, index: int) -> Image.Image:
        if index == 3:
            if self.deed == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.deed == "hang":
                time.sleep(600)
            if self.deed == "unpicklable":
                raise type("Odd", (Exception,), {"__reduce__": lambda _self: 1 / 0})("odd")
        return Image.fromarray(photo(index))


@pytest.mark.parametrize(
    ("deed", "text"),
    [
        ("die", "a worker process failed"),
        ("hang", r"no batch for 2 s \(loader\.timeout\)"),
        ("unpicklable", r"sample 3 \(3\): Odd: odd"),
    ],
)
def test_worker_dies_hangs_or_raises(deed: str, text: str, tmp_path: Path) -> None:
    config = tiny_extraction(
        tmp_path / "a",
        dataset=Troubled(deed),
        loader=Loader(batch_size=1, num_workers=1, timeout=2),
        storage=Storage(shard_samples=1),
    )
    with pytest.raises(SampleError, match=text):
        extract(config)
    assert list((tmp_path / "a" / "shards").glob("0*.h5"))
    assert not list((tmp_path / "a" / "shards").glob(".*"))


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("workers", "number", "code"),
    [
        (0, signal.SIGINT, 130),
        (2, signal.SIGTERM, 143),
        pytest.param(2, signal.SIGINT, 130, marks=pytest.mark.broad),
        pytest.param(0, signal.SIGTERM, 143, marks=pytest.mark.broad),
    ],
)
def test_sigint_and_sigterm_finish_the_batch_and_leave_with_their_code(
    workers: int, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    extra = (f"archive={tmp_path / 'a'}", f"hydra.run.dir={tmp_path / 'run'}")
    command = (*SLOW, "dataset.samples=400", f"loader.num_workers={workers}", *extra)
    process = start(*command)
    shards = tmp_path / "a" / "shards"
    wait_for(lambda: shards.is_dir() and len(list(shards.glob("0*.h5"))) >= 1, process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert err.splitlines()[-1].startswith("featuremaps: error: stopped by")
    assert "Traceback" not in err
    assert not list(shards.glob(".*"))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left


# ---------------------------------------------------------------- hostile files


def hostile(tmp_path: Path, source: Path, where: str, change: Callable[[h5py.File], None]) -> Path:
    path = tmp_path / "hostile"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(source, path)
    with h5py.File(path / where, "r+") as file:
        change(file)
    # The attacker also writes matching digests: the structure itself must be rejected.
    complete = json.loads((path / "COMPLETE.json").read_text())
    complete["files"][where] = durable.file_sha256(path / where)
    (path / "COMPLETE.json").write_text(json.dumps(complete))
    if where != "archive.h5":
        write_digest(path / where, complete["files"][where])
    return path


ACTIVATION = "layers/conv1/activation"


def _external_link(file: h5py.File) -> None:
    del file[ACTIVATION]
    file[ACTIVATION] = h5py.ExternalLink("/etc/passwd.h5", "/x")


def _external_group(file: h5py.File) -> None:
    del file["layers"]
    file["layers"] = h5py.ExternalLink("/tmp/other.h5", "/layers")


def _soft_link(file: h5py.File) -> None:
    del file[ACTIVATION]
    file[ACTIVATION] = h5py.SoftLink("/inputs/image")


def _external_storage(file: h5py.File) -> None:
    shape = file[ACTIVATION].shape
    del file[ACTIVATION]
    file.create_dataset(
        ACTIVATION, shape, "f4", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
    )


def _foreign_source(file: h5py.File) -> None:
    shape = file[ACTIVATION].shape
    del file[ACTIVATION]
    virtual = h5py.VirtualLayout(shape, "f4")
    virtual[:] = h5py.VirtualSource("/home/user/secret.h5", "x", shape)
    file.create_virtual_dataset(ACTIVATION, virtual)


def _climbing_source(file: h5py.File) -> None:
    shape = file[ACTIVATION].shape
    del file[ACTIVATION]
    virtual = h5py.VirtualLayout(shape, "f4")
    virtual[:] = h5py.VirtualSource("shards/../../secret.h5", "x", shape)
    file.create_virtual_dataset(ACTIVATION, virtual)


def _bomb(file: h5py.File) -> None:
    file.create_dataset("bomb", (2**43,), "u1", chunks=(2**20,))


@pytest.mark.parametrize("where", ["archive.h5", "shards/00000.h5"])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_external_link, "an external link"),
        (_external_group, "an external link"),
        (_soft_link, "a soft link"),
        (_external_storage, "keeps its data in another file"),
        (_foreign_source, "takes its data from '/home/user/secret.h5'"),
        (_climbing_source, "takes its data from"),
        (_bomb, "claims 8796093022208 bytes"),
    ],
)
def test_hostile_hdf5_is_rejected_unread(
    where: str, change: Callable[[h5py.File], None], text: str, tiny_archive: Path, tmp_path: Path
) -> None:
    path = hostile(tmp_path, tiny_archive, where, change)

    def read() -> None:
        with Archive.open(path) as archive:
            archive.layers["conv1"][0]

    with pytest.raises(ArchiveError, match="rejected") as caught:
        read()
    assert text in str(caught.value)


def test_native_plugins_are_not_loaded() -> None:
    program = "import os, pipeline.archive; print(os.environ['HDF5_PLUGIN_PRELOAD'])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "::"


def test_a_manifest_cannot_make_the_reader_build_anything(
    tiny_archive: Path, tmp_path: Path
) -> None:
    """`_target_` is only ever taken from the user's own configuration."""
    path = tmp_path / "a"
    shutil.copytree(tiny_archive, path)
    text = (path / "manifest.json").read_text()
    changed = text.replace("pipeline.models.tiny.TinyModel", "os.system", 1)
    assert changed != text
    (path / "manifest.json").write_text(changed)
    before = set(sys.modules)
    with suppress(ArchiveError):
        Archive.open(path).close()
    assert set(sys.modules) == before


# ---------------------------------------------------------------- the whole and its parts


def test_float16_records_its_largest_relative_error(opened: Archive, tmp_path: Path) -> None:
    extract(
        tiny_extraction(tmp_path / "a", storage=Storage(dtype=StoredType.FLOAT16, shard_samples=3))
    )
    with h5py.File(tmp_path / "a" / "archive.h5") as file:
        recorded = file["layers/conv2/activation"].attrs["max_relative_error"]
    exact = np.stack([opened.layers["conv2"][i] for i in range(7)])
    normal = np.abs(exact) >= 2.0**-14
    errors = np.abs(exact.astype(np.float16).astype(np.float32) - exact) / np.abs(exact)
    np.testing.assert_allclose(recorded, errors[normal].max(), rtol=1e-4)
    assert recorded < 2.0**-11


def test_compare_finds_what_differs(opened: Archive, tmp_path: Path) -> None:
    other = tmp_path / "b"
    extract(tiny_extraction(other, loader=Loader(batch_size=5)))
    with Archive.open(other) as two:
        assert compare(opened, opened)["equal"]
        result = compare(opened, two, rtol=1e-4, atol=1e-5)
        assert result["equal"]
        assert result["layers"]["conv1"]["cosine"] > 0.999999
    changed = tmp_path / "c"
    extract(tiny_extraction(changed, model=TinyModel(weights=None)))
    with Archive.open(changed) as three:
        result = compare(opened, three)
        assert not result["equal"]
        a, b = opened.layers["fc"][:], three.layers["fc"][:]
        np.testing.assert_allclose(
            result["layers"]["fc"]["max_abs"], np.abs(a - b).max(), rtol=1e-6
        )
    fewer = tmp_path / "d"
    extract(tiny_extraction(fewer, layers=LayerSelector(include=("conv1",))))
    with Archive.open(fewer) as four:
        assert compare(opened, four)["layers"]["fc"] == {"problem": "only in A"}


def test_checking_reads_every_chunk(opened: Archive, tmp_path: Path) -> None:
    """A chunk that was never written must not pass as fill values."""
    shard = tmp_path / "00000.h5"
    with h5py.File(opened.path / "shards" / "00000.h5") as good, h5py.File(shard, "w") as bad:
        for name in good:
            if name != "layers":
                good.copy(name, bad)
        for key, value in good.attrs.items():
            bad.attrs[key] = value
        for name in good["layers"]:
            group = bad.create_group(f"layers/{name}")
            source = good[f"layers/{name}/activation"]
            made = group.create_dataset(
                "activation", source.shape, source.dtype, chunks=source.chunks, fletcher32=True
            )
            if name != "conv2":
                made[()] = source[()]
    with pytest.raises(ArchiveError, match="lacks some of its"):
        check_shard(shard, opened.manifest, *opened.manifest.shards[0])
    assert writer.check_shard is check_shard
