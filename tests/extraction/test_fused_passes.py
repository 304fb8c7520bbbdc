"""Statistics on a GPU: the Triton kernel in Triton's interpreter, and the passes in torch.

Both run on the CPU here; `test_gpu.py` runs them on a GPU. Expected values are NumPy's, in float64.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.extraction import rounding, statistics
from tests.conftest import REPOSITORY
from tests.helpers.reference_statistics import EXAMPLES, check, noise

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the functions for a GPU run here: through the passes in torch, or the interpreter."""
    for module in (statistics, rounding):
        monkeypatch.setattr(module, "triton_works", lambda _device: INTERPRETED)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the child")
def test_the_kernel_gives_the_same_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
        cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("example", EXAMPLES)
def test_figures_are_numpys(example: str) -> None:
    make, axis = EXAMPLES[example]
    values = make()
    packed = statistics.on_gpu(values, axis).numpy()
    positions = values.numel() // max(1, len(values) * values.shape[axis])
    check(statistics.unpacked(packed, positions), values, axis)


def test_small_values_deviate_on_a_cpu_too() -> None:
    make, axis = EXAMPLES["squares below float32's range"]
    check(statistics.of_batch(make(), axis), make(), axis)


@pytest.mark.usefixtures("on_cpu")
def test_a_constant_has_no_deviation() -> None:
    constants = torch.cat([torch.tensor([3.3e38, -1e-30]), 1000 + torch.rand(30)])
    for positions in (37, 300):
        values = constants[None, :, None].expand(1, -1, positions)
        found = statistics.unpacked(statistics.on_gpu(values, 1).numpy(), positions)
        assert not found.m2.any()
        np.testing.assert_array_equal(found.mean[0], constants.numpy())


@pytest.mark.usefixtures("on_cpu")
def test_prefix_tokens_only_add_what_is_not_finite() -> None:
    tokens = noise(2, 9, 20)
    tokens[0, 0, 3], tokens[1, 1, 4], tokens[1, 5, 4] = torch.nan, torch.inf, torch.nan
    packed = statistics.on_gpu(tokens[:, 2:], 2, tokens[:, :2])
    found = statistics.unpacked(packed.numpy(), 7)
    reference = statistics.of_batch(tokens[:, 2:], 2, tokens[:, :2])
    np.testing.assert_array_equal(found.nonfinite, reference.nonfinite)
    np.testing.assert_allclose(found.mean, reference.mean, rtol=1e-5)


@pytest.mark.usefixtures("on_cpu")
def test_the_same_bits_twice() -> None:
    maps = noise(2, 3, 70, 70)
    assert torch.equal(statistics.on_gpu(maps, 1), statistics.on_gpu(maps, 1))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # in the interpreter
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 5, 4096, 10_000])
def test_rounding_errors_are_those_of_the_cpu(stored: torch.dtype, size: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 100
    if size > 4:
        values[1], values[2], values[3] = torch.nan, -torch.inf, 1e-42
    if size > 5000:
        values[5000], values[5001], values[5002] = -7e4, 0, 1e-7
    error, largest = rounding.on_gpu(values, stored).tolist()
    finite = values[values.isfinite()]
    assert largest == finite.abs().max()
    normal = finite[finite.abs() >= torch.finfo(stored).smallest_normal].double()
    errors = ((normal.to(stored).double() - normal) / normal).abs()
    assert error == pytest.approx(float(errors[errors.isfinite()].max()), rel=1e-6)
    assert rounding.on_gpu(torch.tensor([0.5, 3.3e-5 / 2**120]), torch.bfloat16)[0] == 0
    assert rounding.on_gpu(torch.tensor([0.5, 3.3e-5]), torch.float16)[0] == 0
    cpu = rounding.largest_relative_error(values, stored)
    assert rounding.at_bound(error, stored) == pytest.approx(cpu, rel=1e-6)


def test_where_triton_does_not_run_torch_takes_over(caplog: pytest.LogCaptureFixture) -> None:
    """On a CPU it runs in its interpreter only."""
    statistics.triton_works.cache_clear()
    assert [statistics.triton_works(torch.device("cpu")) for _ in range(2)] == [INTERPRETED] * 2
    statistics.triton_works.cache_clear()
    assert caplog.text.count("slower passes") == len(caplog.records) == (not INTERPRETED)


STATISTICS = {"values": "*fp32", "figures": "*fp32", "counts": "*i32", "sample_stride": "i64"}
ROUNDING = {"values": "*fp32", "out": "*fp32", "total": "i64", "smallest": "fp32"}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 80, 90])
@pytest.mark.parametrize(
    ("name", "kinds", "constants"),  # Triton compiles arguments that are 1 as constants
    [
        ("statistics", STATISTICS, {"CHANNELS": 2, "POSITIONS": 2048, "position_stride": 1}),
        ("statistics", STATISTICS, {"CHANNELS": 16, "POSITIONS": 64, "position_stride": 1,
                                    "channels": 1, "blocks": 1}),
        ("statistics", STATISTICS, {"CHANNELS": 64, "POSITIONS": 32, "channel_stride": 1}),
        ("statistics", STATISTICS, {"CHANNELS": 64, "POSITIONS": 32, "channel_stride": 1,
                                    "position_stride": 1, "channels": 1, "positions": 1,
                                    "blocks": 1}),
        ("rounding", ROUNDING, {"BFLOAT16": False, "SIZE": 4096}),
        ("rounding", ROUNDING, {"BFLOAT16": True, "SIZE": 4096}),
    ],
)  # fmt: skip
def test_the_kernels_compile_for_gpus_that_are_not_here(
    capability: int, name: str, kinds: dict[str, str], constants: dict[str, int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from pipeline.extraction import fused_passes

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(fused_passes, f"{name}_kernel")
    kinds = dict.fromkeys(kernel.arg_names, "i32") | kinds | dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(kernel, signature=kinds, constexprs=constants)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False}
    )
    assert len(compiled.asm["cubin"]) > 2000
    assert "atom." not in compiled.asm["ptx"]
