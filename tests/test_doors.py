"""Doors: what files, processes, systems and other people's archives may do to a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.archive.digest import write_digest
from pipeline.archive.reader import Archive
from pipeline.errors import ArchiveError
from pipeline.extraction import statistics
from pipeline.extraction.extract import extract
from pipeline.foundation import atomic_files as durable
from pipeline.foundation import machine, network
from pipeline.foundation.locks import locked
from pipeline.foundation.network import no_network
from pipeline.inputs.loading import Loader, worker_count
from pipeline.renderers.compare import Compare
from pipeline.rendering.render import RenderOptions, render
from tests.conftest import REPOSITORY, Run, photo, tiny_extraction
from tests.processes import SLOW, start, wait_for
from tests.test_reproduce import edited

# ---------------------------------------------------------------- 9: one way to open a file


def planted(source: Path, out: Path, where: str, change: Callable[[h5py.File], None]) -> Path:
    """Return a copy of an archive with one file changed, and every digest made anew."""
    shutil.copytree(source, out)
    with h5py.File(out / where, "r+") as file:
        change(file)
    complete = json.loads((out / "COMPLETE.json").read_text())
    complete["files"][where] = durable.file_sha256(out / where)
    (out / "COMPLETE.json").write_text(json.dumps(complete))
    if where != "archive.h5":
        write_digest(out / where, complete["files"][where])
    return out


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
def test_9_an_external_link_is_followed_nowhere(
    tiny_archive: Path, tmp_path: Path, run: Run, command: str, where: str, name: str
) -> None:
    bad = planted(tiny_archive, tmp_path / "a", where, link(name, tiny_archive / where))
    arguments = {
        "verify": [str(bad)], "stitch": [f"archive={bad}"], "info": [str(bad)],
        "pack": [str(bad), str(tmp_path / "out.h5")], "compare": [str(bad), str(tiny_archive)],
        "render": [f"archive={bad}", "renderers=[mean_map]", "render.num_workers=0"],
    }[command]  # fmt: skip
    code, out, err = run(command, *arguments)
    opens_it = where == "archive.h5" or command != "info"
    if command == "stitch" and where == "archive.h5":  # made anew from the shards
        assert code == 0, err
    elif opens_it:
        assert code == 1, (out, err)
        assert "is an external link" in out + err
        assert "defect" not in err
    else:
        assert code == 0, err


@pytest.mark.parametrize("command", ["verify", "stitch"])
def test_9_data_without_chunks_are_named(
    tiny_archive: Path, tmp_path: Path, run: Run, command: str
) -> None:
    def unchunked(file: h5py.File) -> None:
        values = file["inputs/image"][()]
        del file["inputs/image"]
        file.create_dataset("inputs/image", data=values)

    bad = planted(tiny_archive, tmp_path / "a", "shards/00000.h5", unchunked)
    code, _, err = run(command, f"archive={bad}" if command == "stitch" else str(bad))
    assert code == 1
    assert "00000.h5: /inputs/image is not kept in chunks" in err
    assert err.count("\n") == 1


# ---------------------------------------------------------------- 10, 11: processes


def test_10_temporary_names_differ_where_every_job_is_process_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    names = {durable.temporary_beside(tmp_path / "manifest.json") for _ in range(100)}
    assert len(names) == 100
    monkeypatch.setattr(socket, "gethostname", lambda: "../über host" * 9)
    name = durable.temporary_beside(tmp_path / "00000.h5").name
    assert name.startswith(".00000.h5.")
    assert name.endswith(".tmp")
    assert "/" not in name
    assert len(name) < 80


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_11_a_forked_process_holds_no_lock(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # the holder, which forks a worker and is killed
        with locked(tmp_path / "lock"):
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
            os.write(writing, str(worker).encode())
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(reading, 20))
    with pytest.raises(BlockingIOError), locked(tmp_path / "lock"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path / "lock"):  # at once, while the worker lives on
        os.kill(worker, signal.SIGKILL)


def test_11_a_killed_extraction_is_continued_at_once(tmp_path: Path) -> None:
    command = (*SLOW, "loader.num_workers=2", f"archive={tmp_path / 'a'}",
               f"hydra.run.dir={tmp_path / 'run'}")  # fmt: skip
    first = start(*command)
    shards = tmp_path / "a" / "shards"
    wait_for(lambda: shards.is_dir() and bool(list(shards.glob("0*.h5"))), first)
    os.kill(first.pid, signal.SIGKILL)  # its workers go on for a while
    first.wait()
    for pipe in (first.stdout, first.stderr):  # the workers keep them open
        assert pipe is not None
        pipe.close()
    again = start(*command)
    _, err = again.communicate()
    assert again.returncode == 0, err


# ---------------------------------------------------------------- 12: proxies, archives closed


def test_12_a_proxy_looks_hosts_up_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def unknown(*_: object) -> None:
        raise OSError("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for variable in (
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ):
        monkeypatch.delenv(variable, raising=False)
    with network.hub_answers_at_once():
        assert constants.HF_HUB_OFFLINE
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    with network.hub_answers_at_once():
        assert not constants.HF_HUB_OFFLINE
    monkeypatch.setenv("no_proxy", "huggingface.co")
    with network.hub_answers_at_once():
        assert constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("samples", [7, 70])
def test_12_compare_closes_its_archives_and_checks_each_shard_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    from pipeline.archive import reader
    from pipeline.datasets.synthetic import Synthetic
    from pipeline.layers.selector import LayerSelector

    for name in ("a", "b"):
        extract(tiny_extraction(
            tmp_path / name, dataset=Synthetic(samples=samples, height=20, width=24),
            layers=LayerSelector(include=("conv1",)),
        ))  # fmt: skip
    note = tmp_path / "checked"
    real = reader.check_digest

    def noted(shard: Path) -> str:
        with note.open("a") as file:  # also by the processes that draw
            file.write(f"{shard}\n")
        return real(shard)

    monkeypatch.setattr(reader, "check_digest", noted)
    closed: list[Path] = []
    monkeypatch.setattr(
        Archive, "close",
        lambda self, close=Archive.close: (closed.append(self.path), close(self))[1],
    )  # fmt: skip
    renderers = {"compare": Compare(archives=(str(tmp_path / "b"),))}
    with Archive.open(tmp_path / "a") as archive:
        render(archive, tmp_path / "out", renderers, RenderOptions(num_workers=2))
        assert tmp_path / "b" in closed
        assert tmp_path / "a" not in closed
        names = note.read_text().split()
        assert len(names) == len(set(names)) == 2 * len(archive.manifest.shards)


# ---------------------------------------------------------------- 13: macOS, small containers, MPS


def test_13_cores_are_counted_where_there_is_no_affinity(
    tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == os.cpu_count()
    extract(tiny_extraction(tmp_path / "a", loader=Loader(batch_size=2)))
    with Archive.open(tmp_path / "a") as archive:
        from pipeline.renderers.mean_map import MeanMap

        render(archive, tmp_path / "out", {"mean_map": MeanMap()})
    for path in (REPOSITORY / "pipeline").rglob("*.py"):
        if path.name != "machine.py":
            assert "sched_getaffinity" not in path.read_text(), path


OWN = """
import dataclasses, multiprocessing, sys
import numpy as np
from PIL import Image
from torch import nn
from pipeline.datasets import ImageDataset, Sample
from pipeline.renderers import Renderer

class Pictures:
    def __init__(self): self.samples = [Sample(id=str(i)) for i in range(70)]
    def read(self, index):
        assert multiprocessing.parent_process() is not None, "decoded in the main process"
        return Image.fromarray(np.full((20, 24, 3), index, np.uint8))

@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(ImageDataset):
    def open(self): return Pictures()

@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn(Renderer):
    def draw(self, sample):
        from pipeline.renderers.mean_map import MeanMap
        yield from MeanMap().draw(sample)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward(self, x): return self.conv(x)
"""


def test_13_what_is_the_users_travels_to_spawned_processes(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "go.py").write_text(
        textwrap.dedent("""
        import multiprocessing, sys
        if __name__ == "__main__":
            multiprocessing.set_start_method("spawn")
            from pipeline.cli.main import main
            from own import Drawn
            from pathlib import Path
            code = main([
                "extract", "model=checkpoint", "model.class_path=own.Net", "model.weights=null",
                "dataset=flat_folder", "dataset._target_=own.Mine", "~dataset.root",
                "layers.include=[conv]", "loader.num_workers=2", "device=cpu", "archive=out",
                "model.transform.resize=[16]", "model.transform.crop=[16]", "loader.batch_size=8",
                "hydra.run.dir=run",
            ])
            assert code == 0, code
            from pipeline.archive.reader import Archive
            from pipeline import render
            with Archive.open("out") as archive:
                render(archive, Path("pictures"), {"drawn": Drawn()})
    """)
    )
    found = subprocess.run(
        [sys.executable, "go.py"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=dict(os.environ) | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    with Archive.open(tmp_path / "out") as archive:
        assert [int(archive.image(i)[0, 0, 0]) for i in range(70)] == list(range(70))
    assert len(list((tmp_path / "pictures" / "pictures" / "drawn").rglob("*.png"))) == 70


@pytest.mark.parametrize("free", [0, 2**20])
def test_13_without_shared_memory_there_are_no_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int
) -> None:
    monkeypatch.setattr("pipeline.inputs.loading.shared_memory", lambda: free)
    monkeypatch.setattr("pipeline.rendering.drawing.shared_memory", lambda: free)
    assert worker_count(Loader(num_workers=4), torch.device("cpu"), 9, 2**20) == 0
    assert len(caplog.records) == 1
    assert "decoded without worker processes: 4 need 12.6 MB of shared memory" in caplog.text
    assert worker_count(Loader(num_workers=0), torch.device("cpu"), 9, 2**20) == 0
    monkeypatch.setattr("pipeline.inputs.loading.shared_memory", lambda: None)
    assert worker_count(Loader(num_workers=4), torch.device("cpu"), 9, 2**20) == 4


def test_13_shared_memory_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "missing")
    monkeypatch.setattr(machine.sys, "platform", "linux")
    assert machine.shared_memory() == 0
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    assert machine.shared_memory() == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    assert machine.shared_memory() is None


def test_13_statistics_need_no_float64_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPS has none. Its tensors are stood in for by ones that refuse to become float64."""
    values = torch.randn(3, 4, 5, 5)
    values[0, 1, 2, 3] = torch.nan
    values[2, 3] = torch.inf
    expected = statistics.of_batch(values, 1)
    found = statistics.of_batch(values.as_subclass(OnMps), 1)
    for name, array in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)


class OnMps(torch.Tensor):
    """A tensor that says it is on a GPU of Apple's."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device("mps")
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(function, types, args, kwargs or {})
        if getattr(found, "dtype", None) is torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return found


def test_14_h5py_locks_its_direct_chunk_calls() -> None:
    requirements = metadata.requires("featuremaps") or []
    (h5py_at_least,) = [text for text in requirements if text.startswith("h5py")]
    assert "3.16" in h5py_at_least


# ---------------------------------------------------------------- 15: reproduce


def test_15_code_that_ships_with_an_archive_is_not_run(
    tiny_archive: Path, tmp_path: Path, run: Run
) -> None:
    shipped = tmp_path / "a" / "model"
    mark = tmp_path / "RAN"
    model = {
        "_target_": "pipeline.models.transformers.TransformersModel", "name": str(shipped),
        "weights": None, "arguments": {"trust_remote_code": True},
    }  # fmt: skip
    archive = edited(tiny_archive, tmp_path / "a", model=model)
    shipped.mkdir()
    (shipped / "configuration_x.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (shipped / "config.json").write_text(json.dumps(
        {"model_type": "x", "auto_map": {"AutoConfig": "configuration_x.X"}}
    ))  # fmt: skip
    for flags in ([], ["--allow-network"], ["--allow-code"]):
        code, _, err = run("reproduce", str(archive), str(tmp_path / "b"), *flags)
        assert code == 2, err
        assert "trust_remote_code" in err
        assert not mark.exists()


def test_15_what_an_archive_carries_is_never_interpolated(
    tiny_archive: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hush")
    dataset = {"_target_": "pipeline.datasets.flat_folder.FlatFolder", "limit": None,
               "root": str(tmp_path / "${oc.env:SECRET}")}  # fmt: skip
    archive = edited(tiny_archive, tmp_path / "a", dataset=dataset)
    (tmp_path / "hush").mkdir()
    code, out, err = run("reproduce", str(archive), str(tmp_path / "b"))
    assert code == 2
    assert "${oc.env:SECRET}" in out
    assert "${oc.env:SECRET} does not exist" in err
    assert "hush" not in out + err
    Image.fromarray(photo()).save(tmp_path / "hush" / "x.png")
    place = tmp_path / "${oc.env:SECRET}"
    place.mkdir()
    Image.fromarray(photo()).save(place / "y.png")
    assert run("reproduce", str(archive), str(tmp_path / "b"))[0] == 1  # other samples, that is all
    with Archive.open(tmp_path / "b") as again:
        assert [sample.id for sample in again.samples] == ["y.png"]


def test_15_the_users_own_configuration_is_interpolated_once(tmp_path: Path) -> None:
    from pipeline.config.typed import build
    from pipeline.datasets.base import ImageDataset

    for text in ("${oc.env:HOME}", r"\${x}", r"a\\${b}", "$", "${", r"\\", "{${}}"):
        node = {"_target_": "pipeline.datasets.flat_folder.FlatFolder", "root": text}
        assert build(node, ImageDataset, "dataset").root == text


def test_15_arguments_are_limited_to_harmless_ones(
    tiny_archive: Path, tmp_path: Path, run: Run
) -> None:
    url = {"url": "http://127.0.0.1:9/${oc.env:HOME}"}
    base = {"_target_": "pipeline.models.timm.TimmModel", "name": "resnet18", "weights": None}
    for number, (arguments, text) in enumerate([
        ({"pretrained_cfg_overlay": url}, "model.arguments.pretrained_cfg_overlay"),
        ({"num_classes": {"a": 1}}, "model.arguments.num_classes"),
        ({"global_pool": "a b;c"}, "model.arguments.global_pool"),
    ]):  # fmt: skip
        archive = edited(
            tiny_archive, tmp_path / f"a{number}", model=base | {"arguments": arguments}
        )
        code, _, err = run("reproduce", str(archive), str(tmp_path / "b"), "--dry-run")
        assert code == 2
        assert f"{text} is none that is harmless; give --allow-code" in err
        code, out, err = run("reproduce", str(archive), str(tmp_path / "b"), "--dry-run",
                             "--allow-code")  # fmt: skip
        assert code == 0, err
        assert f"--allow-code lets in: {text}" in out
    fine = edited(tiny_archive, tmp_path / "fine", model=base | {"arguments": {"num_classes": 4}})
    assert run("reproduce", str(fine), str(tmp_path / "b"), "--dry-run")[0] == 0


def test_15_no_network_unless_it_is_allowed(
    tiny_archive: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    model = {"_target_": "pipeline.models.torchvision.TorchvisionModel", "name": "resnet18",
             "weights": "DEFAULT", "arguments": {}}  # fmt: skip
    archive = edited(tiny_archive, tmp_path / "a", model=model)
    code, _, err = run("reproduce", str(archive), str(tmp_path / "b"))
    assert code == 2
    assert "download.pytorch.org was asked for; give --allow-network" in err
    assert "torchvision's weights of resnet18" in err
    code, out, _ = run("reproduce", str(archive), str(tmp_path / "b"), "--dry-run",
                       "--allow-network")  # fmt: skip
    assert code == 0
    assert "--allow-network lets in: torchvision's weights of resnet18" in out


def test_15_sockets_are_shut_in_the_block_only() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with no_network() as tried:
        with pytest.raises(OSError, match="no network"):
            socket.create_connection(server.getsockname(), timeout=5)
        with pytest.raises(OSError, match="no network"):
            socket.getaddrinfo("example.org", 80)
        one, other = socket.socketpair()
        one.sendall(b"x")
        assert other.recv(1) == b"x"
        one.close()
        other.close()
    assert tried == ["127.0.0.1", "example.org"]
    socket.create_connection(server.getsockname(), timeout=5).close()
    server.close()


def test_15_no_path_outside_what_the_user_gave(
    tiny_archive: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, mine = tmp_path / "private", tmp_path / "mine"
    private.mkdir()
    mine.mkdir()
    monkeypatch.chdir(mine)
    Image.fromarray(photo()).save(private / "x.png")
    folder = {"_target_": "pipeline.datasets.flat_folder.FlatFolder", "limit": None}
    out = str(mine / "b")
    archive = edited(tiny_archive, mine / "a", dataset=folder | {"root": str(private)})
    code, _, err = run("reproduce", str(archive), out)
    assert code == 2
    assert f"dataset.root: the archive names {private}, outside of the folders" in err
    assert "--allow-path" in err
    assert run("reproduce", str(archive), out, "--allow-path", str(private))[0] == 1
    shutil.rmtree(out)
    (mine / "photos").mkdir()
    (mine / "photos" / "link.png").symlink_to(private / "x.png")
    (mine / "list.csv").write_text(f"path\n{private / 'x.png'}\n")
    csv = {"_target_": "pipeline.datasets.csv.CsvFile", "path": str(mine / "list.csv")}
    weights = {"_target_": "pipeline.models.tiny.TinyModel", "weights": "/etc/passwd"}
    remote = {
        "_target_": "pipeline.datasets.huggingface.HuggingFaceDataset",
        "name": "imagefolder",
        "arguments": {"data_files": ["file:///etc/passwd"]},
    }
    for number, (changes, text) in enumerate([
        ({"dataset": folder | {"root": str(mine / "photos")}}, "link.png"),
        ({"dataset": csv}, str(private / "x.png")),
        ({"model": weights}, "model.weights"),
        ({"dataset": remote}, "data_files"),
    ]):  # fmt: skip
        archive = edited(tiny_archive, mine / f"a{number}", **changes)
        code, _, err = run("reproduce", str(archive), out)
        assert code == 2, err
        assert text in err
        assert "outside of the folders of this run" in err
        assert not Path(out).exists()


# ---------------------------------------------------------------- 16: hostile structure


def test_16_nested_groups_do_not_keep_a_reader_busy(tiny_archive: Path, tmp_path: Path) -> None:
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
            Archive.open(bad)
        assert time.process_time() - began[0] < 10
        assert os.times().children_user - began[1] < 10


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("ending", ["crash", "hang"])
def test_16_a_parser_that_crashes_or_hangs_is_one_line(
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
        Archive.open(tiny_archive)


def test_16_the_probe_is_a_process_of_its_own_elsewhere(
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


def test_16_the_structure_is_judged_the_same_in_this_process(
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


def test_16_nothing_is_unchecked_by_default() -> None:
    import inspect

    assert inspect.signature(Archive.open).parameters["check"].default is True
    for path in (REPOSITORY / "pipeline").rglob("*.py"):
        assert "check=False" not in path.read_text().replace("check=False)\n", ""), path
    assert "and for nothing else" in " ".join((Archive.trust.__doc__ or "").split())


# ---------------------------------------------------------------- 17: exploding configuration


@pytest.mark.parametrize("command", ["run", "layers"])
def test_17_aliases_that_explode_are_refused(tmp_path: Path, run: Run, command: str) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    place = tmp_path / "conf" / "experiment"
    place.mkdir(parents=True)
    (place / "bomb.yaml").write_text("# @package _global_\n" + "\n".join(levels) + "\n")
    flag = ["--config-dir", str(tmp_path / "conf")] if command == "run" else [
        f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    ]  # fmt: skip
    began = time.process_time()
    code, _, err = run(command, *flag, "+experiment=bomb")
    assert time.process_time() - began < 20
    assert code == 2
    assert "bomb.yaml: its aliases (*name) stand for 12,345,679,0" in err
    assert err.count("\n") == 1
    (place / "bomb.yaml").write_text("a: &a [*a]\n")
    assert "endlessly many" in run(command, *flag, "+experiment=bomb")[2]


def test_17_ordinary_aliases_are_fine(tmp_path: Path, run: Run) -> None:
    place = tmp_path / "conf" / "experiment"
    place.mkdir(parents=True)
    (place / "mine.yaml").write_text(
        "# @package _global_\nlayers:\n  include: &these [conv1]\n  exclude: []\n"
        "renderers:\n  grid:\n    maps: &n 3\n    columns: *n\n"
    )
    code, out, err = run("run", "--config-dir", str(tmp_path / "conf"), "+experiment=mine",
                         "model=tiny", "dataset=synthetic", "--cfg", "job")  # fmt: skip
    assert code == 0, err
    assert "columns: 3" in out
