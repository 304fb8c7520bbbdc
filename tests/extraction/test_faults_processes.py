"""The fault matrix, processes: workers that die, hang or raise; SIGINT and SIGTERM."""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from PIL import Image

from pipeline.common.errors import Interrupted, SampleError
from pipeline.common.signals import StopRequest, between_batches
from pipeline.datasets.base import ImageDataset
from pipeline.datasets.samples import Images, Sample
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.extraction.settings import Storage
from tests.conftest import photo, tiny_extraction
from tests.helpers.processes import SLOW, group_is_gone, start, wait_for

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
        self.samples = [Sample(id=str(i)) for i in range(12)]

    def read(self, index: int) -> Image.Image:
        if index == 8:
            if self.deed == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.deed == "hang":
                time.sleep(600)
            if self.deed == "unpicklable":
                raise type("Odd", (Exception,), {"__reduce__": lambda _self: 1 / 0})("odd")
        return Image.fromarray(photo(index))


# torch raises wherever the main thread is, also while it opens files
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("deed", "text"),
    [
        ("die", "a worker process failed"),
        pytest.param("hang", r"no batch for 8 s \(loader\.timeout\)", marks=pytest.mark.slow),
        ("unpicklable", r"sample 8 \(8\): Odd: odd"),
    ],
)
def test_worker_dies_hangs_or_raises(deed: str, text: str, tmp_path: Path) -> None:
    config = tiny_extraction(
        tmp_path / "a",
        dataset=Troubled(deed),
        loader=Loader(batch_size=1, num_workers=1, timeout=8 if deed == "hang" else 300),
        storage=Storage(shard_samples=1),
    )
    with pytest.raises(SampleError, match=text):
        extract(config)
    assert list((tmp_path / "a" / "shards").glob("0*.h5"))
    assert not list((tmp_path / "a" / "shards").glob(".*"))


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset"), EOFError()])
def test_worker_dies_while_its_memory_is_fetched(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*_: object, **__: object) -> None:
        raise error

    iterator = "torch.utils.data.dataloader._MultiProcessingDataLoaderIter"
    monkeypatch.setattr(f"{iterator}._try_get_data", fetched)
    with pytest.raises(SampleError, match=r"a worker process failed: .+; finished shards"):
        extract(tiny_extraction(tmp_path / "a", loader=Loader(num_workers=1)))


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError(), RuntimeError()])
def test_workers_that_a_signal_ends_are_not_reported(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = StopRequest()

    def fetched(*_: object, **__: object) -> None:
        stopped.signal = signal.SIGTERM
        raise error

    iterator = "torch.utils.data.dataloader._MultiProcessingDataLoaderIter"
    monkeypatch.setattr(f"{iterator}._try_get_data", fetched)
    signals = "pipeline.extraction.extract.between_batches"
    monkeypatch.setattr(signals, lambda: nullcontext(stopped))
    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM"):
        extract(tiny_extraction(tmp_path / "a", loader=Loader(num_workers=1)))


def test_a_signal_that_nobody_checks_takes_effect_after_the_block() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: seen.append(number))
    try:
        with suppress(KeyError), between_batches():
            signal.raise_signal(signal.SIGTERM)
            assert not seen
            raise KeyError  # another reason to stop, as devices tell each other
        assert seen == [signal.SIGTERM]
        with pytest.raises(Interrupted, match="SIGTERM"), between_batches() as stop:
            signal.raise_signal(signal.SIGTERM)
            stop.check()
        assert len(seen) == 1
    finally:
        signal.signal(signal.SIGTERM, before)


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
    assert process.returncode is None, process.communicate()
    os.killpg(process.pid, number)
    _, err = process.communicate()
    assert process.returncode == code, err
    assert err.splitlines()[-1].startswith("featuremaps: error: stopped by")
    assert "Traceback" not in err
    assert not list(shards.glob(".*"))
    group_is_gone(process.pid)
