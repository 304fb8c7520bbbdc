"""On a GPU: what the CPU gives, the same bits every time, and no crash where memory runs out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.cli.gpu_lease import gpu_names
from pipeline.common.errors import ConfigError
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction import statistics
from pipeline.extraction.activation_stream import ActivationStream
from pipeline.extraction.devices import choose_device
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.extraction.reductions.subsets import RandomPositions
from pipeline.extraction.settings import (
    Extraction,
    OnError,
    Precision,
    Shard,
    Storage,
    StoredType,
)
from pipeline.models.torchvision import TorchvisionModel
from pipeline.training.activation_loader import ActivationLoader
from tests.conftest import photo, tiny_extraction

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
GPU = "cuda"


def resnet(path: Path, **changes: object) -> Extraction:
    """Return an extraction of a residual network's stages over nine images, on the GPU."""
    extraction = Extraction(
        model=TorchvisionModel(name="resnet18", weights=None),
        dataset=Synthetic(samples=9),
        layers=LayerSelector(include=("conv1", "layer1", "layer4", "avgpool", "fc")),
        loader=Loader(batch_size=4),
        storage=Storage(shard_samples=5),
        archive=str(path),
        device=GPU,
    )
    return replace(extraction, **changes)  # type: ignore[arg-type]


def distances(one: Path, two: Path) -> dict[str, float]:
    """Return ‖one - two‖ / ‖one‖ of every layer, over all samples."""
    found = {}
    with Archive.open(one) as a, Archive.open(two) as b:
        for name in a.layers:
            x, y = (np.asarray(archive.layers[name][:], dtype=float) for archive in (a, b))
            found[name] = float(np.linalg.norm(x - y) / np.linalg.norm(x))
    return found


def same_bits(one: Path, two: Path) -> bool:
    """Tell whether two archives hold the same activations, bit for bit."""
    with Archive.open(one) as a, Archive.open(two) as b:
        return all(a.layers[name][:].tobytes() == b.layers[name][:].tobytes() for name in a.layers)


def test_values_and_statistics_are_the_cpus_but_for_rounding(tmp_path: Path) -> None:
    extract(resnet(tmp_path / "gpu"))
    extract(resnet(tmp_path / "cpu", device="cpu"))
    found = distances(tmp_path / "cpu", tmp_path / "gpu")
    assert max(found.values()) < 1e-5, found
    with Archive.open(tmp_path / "cpu") as cpu, Archive.open(tmp_path / "gpu") as gpu:
        for name in cpu.layers:
            one, two = cpu.layers[name].statistics, gpu.layers[name].statistics
            assert np.array_equal(one["count"], two["count"])
            for figure in ("mean", "std", "min", "max"):
                a, b = one[figure], two[figure]
                assert np.allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max()), (name, figure)


def test_the_same_bits_every_time_and_in_parts(tmp_path: Path) -> None:
    extract(resnet(tmp_path / "once"))
    extract(resnet(tmp_path / "again"))
    extract(resnet(tmp_path / "parts", shard=Shard(index=1, count=2)))
    extract(resnet(tmp_path / "parts"))  # what is left
    assert same_bits(tmp_path / "once", tmp_path / "again")
    assert same_bits(tmp_path / "once", tmp_path / "parts")


@pytest.mark.parametrize("precision", [Precision.BFLOAT16, Precision.FLOAT16])
def test_half_precision_is_close_and_repeats(tmp_path: Path, precision: Precision) -> None:
    extract(resnet(tmp_path / "exact"))
    for name in ("once", "again"):
        extract(resnet(tmp_path / name, precision=precision))
    found = distances(tmp_path / "exact", tmp_path / "once")
    assert 1e-5 < max(found.values()) < 0.05, found
    assert same_bits(tmp_path / "once", tmp_path / "again")


@pytest.mark.parametrize("dtype", [StoredType.FLOAT32, StoredType.FLOAT16])
def test_unreadable_images_alone_or_a_whole_batch_of_them(
    tmp_path: Path, dtype: StoredType
) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(6):
        Image.fromarray(photo(i)).save(tmp_path / "photos" / f"{i}.png")
    for i in (0, 1, 2):  # the first batch, and one of the second
        (tmp_path / "photos" / f"{i}.png").write_bytes(b"no picture")
    common = {
        "dataset": FlatFolder(root=str(tmp_path / "photos")), "on_error": OnError.SKIP,
        "loader": Loader(batch_size=2), "storage": Storage(dtype=dtype, shard_samples=6),
    }  # fmt: skip
    extract(tiny_extraction(tmp_path / "gpu", **common, device=GPU))
    extract(tiny_extraction(tmp_path / "cpu", **common))
    with Archive.open(tmp_path / "gpu") as gpu, Archive.open(tmp_path / "cpu") as cpu:
        for name in gpu.layers:
            found, expected = (np.float32(archive.layers[name][:]) for archive in (gpu, cpu))
            assert np.isnan(found[:3]).all()
            scale = np.abs(expected[3:]).max()
            assert np.allclose(found[3:], expected[3:], rtol=1e-3, atol=1e-3 * scale), name


def test_float16_is_the_rounded_float32(tmp_path: Path) -> None:
    extract(resnet(tmp_path / "exact"))
    extract(resnet(tmp_path / "half", storage=Storage(dtype=StoredType.FLOAT16, shard_samples=5)))
    with Archive.open(tmp_path / "exact") as exact, Archive.open(tmp_path / "half") as half:
        for name in exact.layers:
            assert np.array_equal(np.float16(exact.layers[name][:]), half.layers[name][:]), name


def test_positions_are_drawn_as_on_the_cpu(tmp_path: Path) -> None:
    maps = LayerSelector(include=("layer1", "layer4"))
    for name, device in (("gpu", GPU), ("cpu", "cpu")):
        drawn = RandomPositions(count=3)
        extract(resnet(tmp_path / name, reduction=drawn, layers=maps, device=device))
    assert max(distances(tmp_path / "cpu", tmp_path / "gpu").values()) < 1e-5


@pytest.mark.filterwarnings("default:.*torch.jit.*:DeprecationWarning")  # of torch's own modules
def test_a_compiled_model_gives_the_plain_models_values(tmp_path: Path) -> None:
    extract(tiny_extraction(tmp_path / "plain", device=GPU))
    extract(tiny_extraction(tmp_path / "compiled", device=GPU, compile=True))
    assert max(distances(tmp_path / "plain", tmp_path / "compiled").values()) < 1e-5


def test_statistics_of_what_is_not_finite_or_far_from_zero() -> None:
    values = torch.randn(5, 7, 6, 6, generator=torch.Generator().manual_seed(0))
    values[:, 1] += 1e4
    values[1, 2, 3, 3], values[2, 3, 0, 0], values[3, 4] = torch.nan, -torch.inf, 0
    for some in (values, values[:1]):
        found = statistics.of_batch(some.to(GPU), 1)
        for name, expected in vars(statistics.of_batch(some, 1)).items():
            assert np.allclose(getattr(found, name), expected, rtol=1e-5, atol=1e-4), name


def test_batches_are_halved_until_they_fit_into_the_gpus_memory(tmp_path: Path) -> None:
    """With what memory there is in truth: the allocator is limited to 400 MB."""
    device = choose_device("auto")
    assert device.type == "cuda"
    torch.cuda.empty_cache()
    allowed = (400e6 + torch.cuda.memory_allocated()) / torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(allowed, device)
    try:
        with pytest.raises(ConfigError, match=r"out of memory for a batch of 128; set loader"):
            extract(resnet(tmp_path / "no", loader=Loader(batch_size=128)))
        extract(resnet(tmp_path / "halved", loader=Loader()))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()
    with Archive.open(tmp_path / "halved") as archive:
        assert archive.manifest.identity["batch_size"] < 64


def test_every_gpu_has_a_name_of_its_own() -> None:
    names = gpu_names()
    assert len(set(names)) == torch.cuda.device_count() >= 1


def test_a_loaders_batches_arrive_on_the_gpu_whole(tmp_path: Path) -> None:
    extract(resnet(tmp_path / "a", device="cpu"))
    options: dict[str, Any] = {"positions": 40, "normalize": "standard", "shuffle": "none"}
    there = ActivationLoader(tmp_path / "a", "layer1", 2, device=GPU, dtype="bfloat16", **options)
    here = ActivationLoader(tmp_path / "a", "layer1", 2, dtype="bfloat16", **options)
    for one, other in zip(there, here, strict=True):
        (values,) = one.activations.values()
        assert (values.device.type, one.labels.device.type, one.rows.device.type) == (
            GPU, GPU, "cpu"
        )  # fmt: skip
        busy = torch.randn(2000, 2000, device=GPU) @ torch.randn(2000, 2000, device=GPU)
        assert torch.equal(values.cpu(), other.activations["layer1"]), busy
        assert torch.equal(one.labels.cpu(), other.labels)
    for loader in (there, here):
        loader.close()


def test_a_stream_gives_the_archives_bits(tmp_path: Path) -> None:
    extract(resnet(tmp_path / "a"))
    for options in ({"shuffle": "none"}, {"device": GPU}):
        stream = ActivationStream(resnet(tmp_path / "b"), ["layer1", "fc"], 3, **options)
        loader = ActivationLoader(tmp_path / "a", ["layer1", "fc"], 3, **options)
        torch.backends.cuda.matmul.allow_tf32 = True
        for one, other in zip(stream, loader, strict=True):
            for key in ("layer1", "fc"):
                assert torch.equal(one.activations[key], other.activations[key]), key
        torch.backends.cuda.matmul.allow_tf32 = False
        loader.close()
