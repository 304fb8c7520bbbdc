"""On a GPU: what the CPU gives, the same bits every time, and no crash where memory runs out."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import nn

from pipeline.archive.format.statistics import Statistics
from pipeline.archive.reading.archive import Archive
from pipeline.archive.writing.shard_writer import ShardWriter
from pipeline.capture.selector import LayerSelector
from pipeline.cli.jobs import gpu_names
from pipeline.common.errors import ConfigError, LayerError
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction import statistics
from pipeline.extraction.activation_stream import ActivationStream
from pipeline.extraction.devices import choose_device, reproducible
from pipeline.extraction.extract import extract, load
from pipeline.extraction.loader import Loader
from pipeline.extraction.plan import make_plan
from pipeline.extraction.reductions.base import NoReduction, Reduction
from pipeline.extraction.reductions.pooling import AverageGrid, SpatialMax, SpatialMean
from pipeline.extraction.reductions.subsets import ChannelSubset, RandomPositions
from pipeline.extraction.replicas import ModelReplicas
from pipeline.extraction.settings import (
    Extraction,
    Precision,
    Shard,
    Storage,
)
from pipeline.models.torchvision import TorchvisionModel
from pipeline.training.activation_loader import ActivationLoader
from tests.conftest import photo, tiny_extraction
from tests.helpers.reference_statistics import EXAMPLES, check, noise
from tests.helpers.replicated import extraction

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


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_close_and_repeats(tmp_path: Path, precision: Precision) -> None:
    extract(resnet(tmp_path / "exact"))
    for name in ("once", "again"):
        extract(resnet(tmp_path / name, precision=precision))
    found = distances(tmp_path / "exact", tmp_path / "once")
    assert 1e-5 < max(found.values()) < 0.05, found
    assert same_bits(tmp_path / "once", tmp_path / "again")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_unreadable_images_alone_or_a_whole_batch_of_them(tmp_path: Path, dtype: Precision) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(6):
        Image.fromarray(photo(i)).save(tmp_path / "photos" / f"{i}.png")
    for i in (0, 1, 2):  # the first batch, and one of the second
        (tmp_path / "photos" / f"{i}.png").write_bytes(b"no picture")
    common = {
        "dataset": FlatFolder(root=str(tmp_path / "photos")), "on_error": "skip",
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
    extract(resnet(tmp_path / "half", storage=Storage(dtype="float16", shard_samples=5)))
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


def test_triton_is_used() -> None:
    pytest.importorskip("triton")
    assert statistics.triton_works(torch.device(GPU, 0))


def on_gpu(values: torch.Tensor, axis: int, beside: torch.Tensor | None = None) -> Statistics:
    packed = statistics.on_gpu(values, axis, beside).cpu().numpy()
    return statistics.unpacked(packed, values.numel() // packed[:, 0].size)


@pytest.mark.parametrize("way", ["fused", "in_torch"])
@pytest.mark.parametrize("example", EXAMPLES)
def test_statistics_are_numpys(way: str, example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "in_torch":
        monkeypatch.setattr(statistics, "triton_works", lambda _device: False)
    make, axis = EXAMPLES[example]
    values = make().to(GPU)  # keeps strides, except those of views with gaps
    for some in (values, values.float().movedim(axis, 1).contiguous().movedim(1, axis)):
        check(on_gpu(some, axis), some, axis)
        assert torch.equal(statistics.on_gpu(some, axis), statistics.on_gpu(some, axis))


def test_views_with_gaps_and_another_stream() -> None:
    """The kernel runs on the stream in use, after what made its input."""
    tokens = torch.randn(64, 197, 768, device=GPU)
    slow = torch.randn(4000, 4000, device=GPU)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):
            slow = slow @ slow / slow.norm()
        tokens += slow[0, 0].nan_to_num(0) * 0 + 1000
        found = on_gpu(tokens[:, 1:], 2, tokens[:, :1])
    torch.cuda.synchronize()
    check(found, tokens[:, 1:], 2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_statistics_on_a_gpu_that_is_not_the_current_one() -> None:
    values = noise(3, 6, 10, 14).to("cuda:1")
    assert torch.cuda.current_device() == 0
    check(on_gpu(values, 1), values, 1)


REDUCTIONS = [
    NoReduction(), SpatialMean(), SpatialMax(), AverageGrid(), RandomPositions(count=16),
    ChannelSubset(channels=(5, 0)),
]  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_host_never_waits_while_it_starts_a_batch(
    tmp_path: Path, reduction: Reduction, precision: Precision, dtype: Precision
) -> None:
    """Any operation that waits for the device is an error; only `arrived` may wait."""
    maps = LayerSelector(include=("conv1", "layer1", "layer4"))
    config = resnet(
        tmp_path / "a", reduction=reduction, precision=precision, layers=maps,
        storage=Storage(dtype=dtype), dataset=Synthetic(samples=16),
    )  # fmt: skip
    with reproducible(0):
        plan = make_plan(config)
        with load(plan, [(row, row + 4) for row in range(0, 16, 4)]) as batches:
            loaded = list(batches)
        assert loaded[0].pixels.is_pinned()
        with ModelReplicas(plan) as replicas:
            rows = replicas.run(loaded)
            for _ in range(2):  # both sets of pinned memory
                batch = next(rows)
                batch.arrived()
                batch.release()
            torch.cuda.set_sync_debug_mode("error")
            try:
                started = [next(rows), next(rows)]
            finally:
                torch.cuda.set_sync_debug_mode("default")
            for batch in started:
                batch.arrived()
                assert batch.statistics.keys() == batch.activations.keys()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stored_figures_are_those_of_the_stored_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """Also when writing is slow: no batch overwrites memory that is still to be written."""
    write = ShardWriter.write

    def slowly(self: ShardWriter, rows: Any) -> bool:
        time.sleep(0.05)
        return write(self, rows)

    config = resnet(
        tmp_path / "slow", precision=precision, dataset=Synthetic(samples=90),
        storage=Storage(shard_samples=40),
    )  # fmt: skip
    monkeypatch.setattr(ShardWriter, "write", slowly)
    extract(config)
    monkeypatch.undo()
    extract(replace(config, archive=str(tmp_path / "fast")))
    assert same_bits(tmp_path / "slow", tmp_path / "fast")
    with Archive.open(tmp_path / "slow") as archive, Archive.open(tmp_path / "fast") as fast:
        for name, layer in archive.layers.items():
            rows = layer[:].astype(float)
            rows = rows.reshape(*rows.shape[:2], -1)
            figures = layer.statistics
            for figure, found in fast.layers[name].statistics.items():
                assert np.array_equal(found, figures[figure]), (name, figure)
            assert np.allclose(figures["mean"], rows.mean((0, 2)), rtol=1e-5, atol=1e-6), name
            assert np.allclose(figures["std"], rows.std((0, 2)), rtol=1e-5, atol=1e-9), name
            assert np.array_equal(figures["max"], rows.max((0, 2))), name
            assert np.array_equal(figures["min"], rows.min((0, 2))), name
            assert np.allclose(figures["zero_fraction"], (rows == 0).mean((0, 2))), name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_recorded_rounding_is_that_of_the_rows(tmp_path: Path, dtype: Precision) -> None:
    extract(resnet(tmp_path / "exact"))
    extract(resnet(tmp_path / "short", storage=Storage(dtype=dtype, shard_samples=5)))
    short, least = getattr(torch, dtype), torch.finfo(getattr(torch, dtype)).smallest_normal
    with Archive.open(tmp_path / "exact") as exact, Archive.open(tmp_path / "short") as archive:
        for name, layer in exact.layers.items():
            values = torch.from_numpy(layer[:])
            values = values[values.abs() >= least].double()
            expected = float(((values.to(short).double() - values).abs() / values.abs()).max())
            recorded = archive.layers[name].rounding
            assert recorded is not None
            assert expected * (1 - 1e-4) <= recorded <= expected * 1.011, name


def test_values_that_may_not_be_end_the_extraction(tmp_path: Path) -> None:
    def config(name: str, factor: float, **changes: object) -> Extraction:
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardtanh(-factor, factor)).eval()
        with torch.no_grad():
            module[0].bias[1] = factor
        layers = LayerSelector(include=("0",))
        return extraction(module, tmp_path / name, device=GPU, layers=layers, **changes)

    with pytest.raises(LayerError, match=r"reaches 1e\+06, but float16 ends at 65504"):
        extract(config("large", 1e6, storage=Storage(dtype="float16")))
    with pytest.raises(LayerError, match="0 returned 196 NaN or infinite values for sample 0"):
        extract(config("infinite", float("inf"), on_nonfinite="raise"))


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


def test_jpeg_files_are_decoded_on_the_gpu(tmp_path: Path) -> None:
    """The same bytes twice; close to Pillow's pixels; the manifest says how close."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(data.chelsea()[number:]).save(folder / f"{number}.jpg", quality=95)
    exact = resnet(tmp_path / "exact", dataset=FlatFolder(root=str(folder)))
    loader = replace(exact.loader, decoder="cuda", num_workers=2)
    configs = [replace(exact, archive=tmp_path / name, loader=loader) for name in ("a", "b")]
    plain, one, two = (Archive.open(extract(config).archive) for config in (exact, *configs))
    differences = []
    for row in range(6):
        np.testing.assert_array_equal(one.image(row), two.image(row))
        differences.append(np.abs(one.image(row).astype(int) - plain.image(row)))
        for name, layer in one.layers.items():
            np.testing.assert_array_equal(layer[row], two.layers[name][row])
    recorded = one.manifest.environment["decoder_difference"]
    assert recorded["max"] == np.max(differences)
    assert np.mean(differences) < 4
    assert extract(configs[0]).written == 0
