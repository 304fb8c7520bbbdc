"""Processes: temporary names, locks, proxies, spawned workers, what a machine lacks."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.common import atomic_files as durable
from pipeline.common import machine, network
from pipeline.common.errors import ConfigError
from pipeline.common.locks import locked
from pipeline.datasets.sequence import FromSequence
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction import statistics
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader, worker_count
from pipeline.renderers.compare import Compare
from pipeline.renderers.mean_map import MeanMap
from pipeline.rendering.render import RenderOptions, render
from tests.conftest import REPOSITORY, Run, tiny_extraction
from tests.helpers.processes import SLOW, group_is_gone, start, wait_for


def test_temporary_names_differ_where_every_job_is_process_1(
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
def test_a_forked_process_holds_no_lock(tmp_path: Path) -> None:
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


def test_a_killed_extraction_is_continued_at_once(run: Run, tmp_path: Path) -> None:
    command = (*SLOW, "loader.num_workers=2", f"archive={tmp_path / 'a'}")
    first = start(*command, f"hydra.run.dir={tmp_path / 'first'}")
    shards = tmp_path / "a" / "shards"
    wait_for(lambda: shards.is_dir() and bool(list(shards.glob("0*.h5"))), first)
    os.kill(first.pid, signal.SIGKILL)  # its workers go on for a while
    while Path(f"/proc/{first.pid}").exists():
        time.sleep(0.01)
    code, _, err = run(*command)
    assert code == 0, err
    with suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGKILL)


def test_a_proxy_looks_hosts_up_itself(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_compare_closes_its_archives(
    tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        shutil.copytree(tiny_archive, tmp_path / name)
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


def test_cores_are_counted_where_there_is_no_affinity(
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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_end_with_a_killed_extraction(method: str, tmp_path: Path) -> None:
    """Also those of a fork server, which outlives it."""
    (tmp_path / "go.py").write_text(
        "import multiprocessing, sys\n"
        "if __name__ == '__main__':\n"
        f"    multiprocessing.set_start_method({method!r})\n"
        "    from pipeline.cli.main import main\n"
        "    main(sys.argv[1:])\n"
    )
    words = ("dataset.samples=100000", "loader.num_workers=2", f"archive={tmp_path / 'a'}",
             f"hydra.run.dir={tmp_path / 'run'}")  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "go.py", *SLOW, *words], cwd=tmp_path, start_new_session=True,
        env=dict(os.environ) | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    while process.poll() is None and not list(tmp_path.glob("a/shards/0*.h5")):
        time.sleep(0.01)
    assert process.poll() is None
    process.kill()
    process.wait()
    group_is_gone(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_is_the_users_is_pickled_to_worker_processes(method: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "go.py").write_text(
        textwrap.dedent("""
        import multiprocessing, sys
        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            from pipeline.cli.main import main
            from own import Drawn
            from pathlib import Path
            code = main([
                "extract", "model=checkpoint", "model.class_path=own.Net", "model.weights=null",
                "dataset=flat_folder", "dataset._target_=own.Mine", "~dataset.root",
                "~dataset.exclude",
                "layers.include=[conv]", "loader.num_workers=2", "device=cpu", "archive=out",
                "model.transform.resize=[16]", "model.transform.crop=[16]", "loader.batch_size=8",
                "hydra.run.dir=run",
            ])
            assert code == 0, code
            from pipeline.archive.reading.archive import Archive
            from pipeline import RenderOptions, render
            with Archive.open("out") as archive:
                render(archive, Path("pictures"), {"drawn": Drawn()},
                       RenderOptions(samples=("all",)))
    """)
    )
    found = subprocess.run(
        [sys.executable, "go.py", method], cwd=tmp_path, capture_output=True, text=True,
        check=False, env=dict(os.environ) | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    with Archive.open(tmp_path / "out") as archive:
        assert [int(archive.image(i)[0, 0, 0]) for i in range(70)] == list(range(70))
    assert len(list((tmp_path / "pictures" / "pictures" / "drawn").rglob("*.png"))) == 70


def test_a_process_that_cannot_start_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one of `multiprocessing.Pool` or Celery."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    dataset, loader = Synthetic(samples=70, height=20, width=24), Loader(num_workers=2)
    config = tiny_extraction(tmp_path / "a", dataset=dataset, loader=loader)
    extract(config)
    assert "decoded without worker processes: a daemonic process cannot start them" in caplog.text
    options = RenderOptions(samples=("all",), num_workers=2)
    render(tmp_path / "a", tmp_path / "drawn", {"mean_map": MeanMap()}, options)
    assert len(list((tmp_path / "drawn").rglob("*.png"))) == 70


@pytest.mark.parametrize("workers", [2, None])
def test_what_cannot_be_pickled_is_one_line_or_decoded_here(
    workers: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3), np.uint8)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "forkserver")
    monkeypatch.setattr("pipeline.extraction.loader.cores", lambda: 16)
    with h5py.File(tmp_path / "images.h5", "w") as file:
        loader = Loader(batch_size=2, num_workers=workers)
        config = tiny_extraction(
            tmp_path / "a", dataset=FromSequence(items=file.create_dataset("images", data=pixels)),
            loader=loader, layers=LayerSelector(include=("conv1",)),
        )  # fmt: skip
        if workers is not None:
            with pytest.raises(ConfigError, match=r"loader\.num_workers: .*h5py objects .*=0"):
                extract(config)
            return
        extract(config)
    assert "decoded without worker processes: the dataset cannot be sent" in caplog.text
    transform = config.model.load().transform
    with Archive.open(tmp_path / "a") as archive:
        for row in range(5):
            expected = transform.pixels(Image.fromarray(pixels[row]))
            np.testing.assert_array_equal(archive.image(row).transpose(2, 0, 1), expected)


@pytest.mark.parametrize("free", [0, 2**20])
def test_without_shared_memory_there_are_no_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int
) -> None:
    monkeypatch.setattr("pipeline.extraction.loader.shared_memory", lambda: free)
    monkeypatch.setattr("pipeline.rendering.workers.shared_memory", lambda: free)
    assert worker_count(Loader(num_workers=4), torch.device("cpu"), 9, 2**20) == 0
    assert len(caplog.records) == 1
    assert "decoded without worker processes: 4 need 12.6 MB of shared memory" in caplog.text
    assert worker_count(Loader(num_workers=0), torch.device("cpu"), 9, 2**20) == 0
    monkeypatch.setattr("pipeline.extraction.loader.shared_memory", lambda: None)
    assert worker_count(Loader(num_workers=4), torch.device("cpu"), 9, 2**20) == 4


def test_shared_memory_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "missing")
    monkeypatch.setattr(machine.sys, "platform", "linux")
    assert machine.shared_memory() == 0
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    assert machine.shared_memory() == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    assert machine.shared_memory() is None


def test_statistics_need_no_float64_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_h5py_locks_its_direct_chunk_calls() -> None:
    requirements = metadata.requires("featuremaps") or []
    (h5py_at_least,) = [text for text in requirements if text.startswith("h5py")]
    assert "3.16" in h5py_at_least
