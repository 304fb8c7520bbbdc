"""Batch size: chosen from shapes, and halved while the device's memory is too small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.archive.reading.archive import Archive
from pipeline.capture.hooks import forward
from pipeline.common.errors import ConfigError
from pipeline.extraction import batch_size
from pipeline.extraction.activation_stream import ActivationStream
from pipeline.extraction.batch_size import choose_batch_size, fitting, too_large
from pipeline.extraction.dummy_forward import trace_model
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from tests.conftest import Run, tiny_extraction
from tests.helpers.stored_arrays import assert_same_arrays


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device on which more than five images do not fit; returns what was tried."""
    tried: list[int] = []

    def limited(model: Any, images: torch.Tensor) -> None:
        tried.append(len(images))
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        forward(model, images)

    monkeypatch.setattr(batch_size, "forward", limited)
    return tried


def test_batches_are_halved_until_they_fit(tmp_path: Path, small_device: list[int]) -> None:
    config = tiny_extraction(tmp_path)
    traced = trace_model(config)
    layers = traced.selection.select(config.layers)
    assert fitting(traced, layers, 32, halve=True) == 4
    assert small_device == [32, 16, 8, 4]


def test_a_configured_batch_size_is_not_changed_silently(
    tmp_path: Path, small_device: list[int]
) -> None:
    config = tiny_extraction(tmp_path)
    traced = trace_model(config)
    layers = traced.selection.select(config.layers)
    with pytest.raises(ConfigError, match=r"batch of 16; set loader.batch_size=8 or smaller"):
        fitting(traced, layers, 16, halve=False)
    assert small_device == [16]
    assert "use a smaller model" in str(too_large(torch.device("cpu"), 1))


def test_memory_that_ends_beside_the_model_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pipeline.extraction.statistics.of_batch", too_much)
    with pytest.raises(ConfigError, match=r"batch of 2; set loader.batch_size=1 or smaller"):
        extract(tiny_extraction(tmp_path / "archive"))


def test_a_gpu_gets_what_fits_and_a_cpu_what_its_caches_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_extraction(tmp_path, loader=Loader())
    traced = trace_model(config)
    layers = traced.selection.select(config.layers)
    assert choose_batch_size(config, traced, layers, 100) == 8
    asked: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        batch_size, "fitting", lambda _o, _l, size, *, halve: asked.append((size, halve)) or 7
    )
    gpu = replace(traced, device=torch.device("cuda"))
    assert choose_batch_size(config, gpu, layers, 100) == 7
    fixed = replace(config, loader=Loader(batch_size=3))
    choose_batch_size(fixed, gpu, layers, 100)
    assert choose_batch_size(fixed, gpu, layers, 2) == 3
    assert asked == [(64, True), (3, False), (2, False)]
    assert choose_batch_size(fixed, traced, layers, 2) == 3


def test_a_batch_size_above_the_number_of_images_takes_no_memory_for_the_others(
    tmp_path: Path, run: Run
) -> None:
    sizes = {name: tiny_extraction(tmp_path / name, loader=Loader(batch_size=size))
             for name, size in (("a", 7), ("b", 10**10))}  # fmt: skip
    for config in sizes.values():
        extract(config)
    assert_same_arrays(tmp_path / "a", tmp_path / "b")
    with Archive.open(tmp_path / "b") as archive:
        assert archive.manifest.batch_size == 10**10  # what is appended comes in such batches
    assert ActivationStream(sizes["b"]).state_dict()["options"]["batch_size"] == 10**10
    assert len(next(iter(ActivationStream(sizes["b"]))).labels) == 7
    words = ("model=tiny", "dataset=synthetic", "dataset.samples=2", f"loader.batch_size={10**10}")
    code, out, err = run("plan", *words)
    assert code == 0, err
    assert "batch size   10000000000" in out
