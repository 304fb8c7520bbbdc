"""Statistics on a GPU: the Triton kernel in Triton's interpreter, and the passes in torch.

Both run on the CPU here; `test_gpu.py` runs them on a GPU. Expected values are NumPy's, in float64.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.extraction import statistics
from tests.conftest import REPOSITORY
from tests.helpers.reference_statistics import EXAMPLES, check, noise

Way = Callable[[Tensor, Tensor], None]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Way:
    """Make `on_gpu` run on the CPU: through the passes in torch, or the interpreted kernel."""
    chosen = statistics.in_torch
    if INTERPRETED:
        from pipeline.extraction.fused_statistics import measure

        chosen = measure
    monkeypatch.setattr(statistics, "_gpu_pass", lambda _device: chosen)
    return chosen


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


@pytest.mark.parametrize("example", EXAMPLES)
def test_figures_are_numpys(way: Way, example: str) -> None:
    make, axis = EXAMPLES[example]
    values = make()
    packed = statistics.on_gpu(values, axis).numpy()
    positions = values.numel() // max(1, len(values) * values.shape[axis])
    check(statistics.unpacked(packed, positions), values, axis)


def test_a_constant_has_no_deviation(way: Way) -> None:
    values = torch.tensor([0.1, 1000.1, 3.3e38, -1e-30]).reshape(1, 4, 1).expand(1, 4, 2500)
    packed = statistics.on_gpu(values, 1).numpy()
    assert statistics.unpacked(packed, 2500).m2.tolist() == [[0, 0, 0, 0]]


def test_prefix_tokens_only_add_what_is_not_finite(way: Way) -> None:
    tokens = noise(2, 9, 20)
    tokens[0, 0, 3], tokens[1, 1, 4], tokens[1, 5, 4] = torch.nan, torch.inf, torch.nan
    packed = statistics.on_gpu(tokens[:, 2:], 2, tokens[:, :2])
    found = statistics.unpacked(packed.numpy(), 7)
    reference = statistics.of_batch(tokens[:, 2:], 2, tokens[:, :2])
    np.testing.assert_array_equal(found.nonfinite, reference.nonfinite)
    np.testing.assert_allclose(found.mean, reference.mean, rtol=1e-5)


def test_the_same_bits_twice(way: Way) -> None:
    maps = noise(2, 3, 70, 70)
    assert torch.equal(statistics.on_gpu(maps, 1), statistics.on_gpu(maps, 1))


def test_where_triton_does_not_run_torch_takes_over(caplog: pytest.LogCaptureFixture) -> None:
    """On a CPU it runs in its interpreter only."""
    statistics._gpu_pass.cache_clear()
    chosen = {statistics._gpu_pass(torch.device("cpu")) for _ in range(2)}
    statistics._gpu_pass.cache_clear()
    assert (chosen == {statistics.in_torch}) != INTERPRETED
    assert caplog.text.count("slower passes") == len(caplog.records) == (not INTERPRETED)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("tile", "ones"),  # Triton compiles arguments that are 1 as constants
    [
        ((2, 2048), ("position_stride",)),
        ((16, 64), ("position_stride", "channels", "blocks")),
        ((64, 32), ("channel_stride", "blocks")),
        ((64, 32), ("channel_stride", "position_stride", "channels", "positions", "blocks")),
    ],
)
def test_the_kernel_compiles_for_gpus_that_are_not_here(
    capability: int, tile: tuple[int, int], ones: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from pipeline.extraction.fused_statistics import kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = dict.fromkeys(ones, 1) | {"CHANNELS": tile[0], "POSITIONS": tile[1]}
    kinds = dict.fromkeys(kernel.arg_names, "i32") | {"sample_stride": "i64"}
    kinds |= {"values": "*fp32", "figures": "*fp32", "counts": "*i32"}
    kinds |= dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(kernel, signature=kinds, constexprs=constants)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False}
    )
    assert len(compiled.asm["cubin"]) > 10_000
    assert "atom." not in compiled.asm["ptx"]
