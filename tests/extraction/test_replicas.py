"""Replicas: batches side by side give the same rows, in the same order, or go one by one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.archive.reading.archive import Archive
from pipeline.archive.writing.shard_writer import ActivationBatch
from pipeline.common.errors import LayerError, SampleError
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.extraction.extract import extract
from pipeline.extraction.hooked_model import HookedModel
from pipeline.extraction.loader import Batch, Loader
from pipeline.extraction.replicas import replica
from pipeline.extraction.settings import Precision, Storage
from tests.conftest import photo, tiny_extraction
from tests.helpers.replicated import extraction, threads
from tests.helpers.stored_arrays import assert_same_arrays


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3)).eval()


@pytest.mark.parametrize("dtype", get_args(Precision))
def test_any_number_of_lanes_gives_the_same_archive(tmp_path: Path, dtype: Precision) -> None:
    counts = (2, 5) if dtype == "float32" else (5,)
    for count in (1, *counts):
        with threads(count):
            storage = Storage(dtype=dtype, shard_samples=8)
            extract(extraction(two_layers(), tmp_path / str(count), storage=storage))
    for count in counts:
        assert_same_arrays(tmp_path / "1", tmp_path / str(count))


def test_batches_run_in_as_many_threads_as_torch_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    call = HookedModel.__call__

    def noted(self: HookedModel, batch: Batch) -> ActivationBatch:
        seen.add(threading.current_thread().name[:9])
        return call(self, batch)

    monkeypatch.setattr(HookedModel, "__call__", noted)
    with threads(3):
        extract(extraction(two_layers(), tmp_path / "a"))
    assert seen == {"replica-0", "replica-1", "replica-2"}


def test_a_copy_shares_parameters_and_nothing_else() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    other = replica(module)
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert one is two
    for first, second in zip(module.buffers(), other.buffers(), strict=True):
        assert first is not second
        assert torch.equal(first, second)
    assert other[0] is not module[0]


class Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Uncopyable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3


def bound_to_the_original() -> nn.Module:
    module = two_layers()
    inner = module[1]
    module.forward = lambda x: inner(module[0](x))  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(Random(), nn.Identity()),
        lambda: nn.Sequential(Uncopyable(), nn.Identity()),
        bound_to_the_original,
    ],
    ids=["random", "uncopyable", "bound"],
)
def test_models_that_a_copy_does_not_reproduce_run_in_one_lane(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for count in (1, 3):
        caplog.clear()
        torch.manual_seed(1)
        with threads(count), caplog.at_level("INFO"):
            extract(extraction(make().eval(), tmp_path / str(count)))
        assert ("run sequentially" in caplog.text) == (count > 1)
    with Archive.open(tmp_path / "3") as archive:
        assert archive.complete
        assert all(np.isfinite(archive.layers["0"][i]).all() for i in range(23))


class FailsAt(nn.Module):
    """Gives NaN, or another shape, from some batch of real images on."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 2:  # 23 samples go in pairs; dummy batches have three images, or one
            return x * torch.nan if self.how == "nan" else x[..., 1:]
        return x


@pytest.mark.parametrize("how", ["nan", "shape"])
def test_an_error_in_one_lane_ends_the_extraction(tmp_path: Path, how: str) -> None:
    module = nn.Sequential(FailsAt(how), nn.Identity()).eval()
    with threads(3), pytest.raises(LayerError, match="layers: 0"):
        extract(extraction(module, tmp_path / "a", on_nonfinite="raise"))
    assert not [thread for thread in threading.enumerate() if "replica" in thread.name]


def test_a_bad_image_behind_batches_under_way_ends_the_extraction(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(20):
        Image.fromarray(photo(i)).save(flat / f"a{i:02}.png")
    (flat / "zz.jpg").write_bytes(b"no image")
    config = tiny_extraction(
        tmp_path / "a", dataset=FlatFolder(root=str(flat)), loader=Loader(batch_size=1)
    )
    with threads(4), pytest.raises(SampleError, match=r"zz\.jpg"):
        extract(config)
    assert not [thread for thread in threading.enumerate() if "replica" in thread.name]
