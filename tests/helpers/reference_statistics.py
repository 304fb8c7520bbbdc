"""Activations of many kinds, and their statistics by NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.archive.format.statistics import Statistics


def noise(*shape: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return values.mul_(3).add_(1).relu_()


def not_finite() -> Tensor:
    maps = noise(1, 8, 66, 66)
    maps[0, 1], maps[0, 2] = torch.nan, torch.inf
    maps[0, 3, :50] = torch.nan  # the first block of positions whole
    maps[0, 3, 50:] += 1000
    maps[0, 4, 50:] = -torch.inf  # and the last
    maps[0, 5, 0, 0], maps[0, 5, 1, 1], maps[0, 5, 2, 2] = torch.nan, torch.inf, -torch.inf
    maps[0, 6], maps[0, 7, 0] = 0, -0.0
    return maps


def far_from_zero(ratio: float) -> Tensor:
    maps = torch.randn(2, 4, 70, 70, generator=torch.Generator().manual_seed(1)) + ratio
    maps[0, 1, :20] += 5  # blocks with different means
    maps[0, 2, 0, 0] += 100 * ratio
    return maps


def huge_tiny_and_constant() -> Tensor:
    maps = noise(1, 8, 50, 50)
    maps[0, 0] *= 1e30
    maps[0, 1] = 3.3e38
    maps[0, 2] = 3.3e38 * torch.linspace(-1, 1, 2500).reshape(50, 50) / 3
    maps[0, 3] *= 1e-12
    maps[0, 4] = 0.1
    maps[0, 5, 3, 3] = 1e25
    maps[0, 6], maps[0, 6, 7, 7] = 1000.1, torch.nan
    return maps


def last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


EXAMPLES: dict[str, tuple[Callable[[], Tensor], int]] = {
    "maps": (lambda: noise(2, 5, 7, 9), 1),
    "one value": (lambda: noise(1, 1, 1, 1), 1),
    "maps of several blocks": (lambda: noise(2, 3, 65, 67), 1),
    "tokens": (lambda: noise(3, 50, 70), 2),
    "many tokens, few channels": (lambda: noise(2, 197, 3), 2),
    "vectors": (lambda: noise(4, 130), 1),
    "volumes": (lambda: noise(2, 4, 3, 6, 5), 1),
    "channels in the last axis": (lambda: noise(2, 3, 4, 5), 3),
    "no samples": (lambda: noise(0, 3, 4, 4), 1),
    "no channels": (lambda: noise(2, 0, 4, 4), 1),
    "channels-last": (lambda: last(noise(3, 6, 10, 14)), 1),
    "a strided view": (lambda: noise(3, 6, 10, 14)[:, ::2, 1:, ::3], 1),
    "transposed": (lambda: noise(3, 6, 10, 14).transpose(2, 3), 1),
    "expanded": (lambda: noise(1, 6, 10, 14).expand(4, -1, -1, -1), 1),
    "tokens after a prefix": (lambda: noise(2, 40, 66).narrow(1, 5, 35), 2),
    "some channels of tokens": (lambda: noise(2, 40, 66)[:, :, 1:], 2),
    "float16": (lambda: noise(3, 6, 10, 14).half(), 1),
    "float16, channels-last": (lambda: last(noise(3, 6, 10, 14).half()), 1),
    "bfloat16": (lambda: noise(3, 6, 10, 14).bfloat16(), 1),
    "bfloat16 tokens": (lambda: noise(2, 40, 66).bfloat16()[:, 1:], 2),
    "not finite": (not_finite, 1),
    "not finite, channels-last": (lambda: last(not_finite()[:, :, 40:]), 1),
    "mean / deviation 1e3": (lambda: far_from_zero(1e3), 1),
    "mean / deviation 1e4, tokens": (
        lambda: far_from_zero(1e4).permute(0, 2, 3, 1).flatten(1, 2)[:, :500], 2
    ),
    "mean / deviation 1e5": (lambda: far_from_zero(1e5), 1),
    "huge, tiny and constant": (huge_tiny_and_constant, 1),
    "squares below float32's range": (lambda: noise(2, 3, 65, 67) * 1e-30, 1),
}  # fmt: skip


def check(found: Statistics, values: Tensor, channel_axis: int) -> None:
    """Compare statistics with NumPy's; mean and variance to 2e-6, all others exactly."""
    maps = np.moveaxis(values.float().cpu().numpy(), channel_axis, 1)
    maps = maps.reshape(*maps.shape[:2], int(np.prod(maps.shape[2:])))
    finite = np.isfinite(maps)
    wide = np.where(finite, maps, 0).astype(np.float64)
    count = finite.sum(-1)
    mean = wide.sum(-1) / np.maximum(count, 1)
    m2 = (np.where(finite, wide - mean[..., None], 0) ** 2).sum(-1)
    exact: dict[str, np.ndarray[Any, Any]] = {
        "count": count, "zeros": (maps == 0).sum(-1), "nonfinite": (~finite).sum(-1),
        "min": np.where(finite, maps, np.inf).min(-1, initial=np.inf),
        "max": np.where(finite, maps, -np.inf).max(-1, initial=-np.inf),
    }  # fmt: skip
    for name, figure in exact.items():
        np.testing.assert_array_equal(getattr(found, name), figure, err_msg=name)
    np.testing.assert_allclose(found.m2, m2, rtol=2e-6)
    np.testing.assert_array_equal(np.isnan(found.mean), count == 0)
    allowed = 2e-6 * np.sqrt(m2 / np.maximum(count, 1)) + 1e-7 * np.abs(mean)
    assert np.all((np.abs(found.mean - mean) <= allowed) | (count == 0))
