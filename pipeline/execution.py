"""Execution settings of a run that are no object of their own.

And how they are applied to torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pipeline.archive.codec import Codec, ready
from pipeline.errors import ArchiveError, ConfigError

if TYPE_CHECKING:
    import torch


class Precision(StrEnum):
    """Arithmetic of the forward pass: float32, or autocast to a shorter type."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class OnError(StrEnum):
    """What to do with an image that cannot be used."""

    RAISE = "raise"
    SKIP = "skip"


class OnNonfinite(StrEnum):
    """What to do with NaN or infinity in an activation."""

    KEEP = "keep"
    RAISE = "raise"


class StoredType(StrEnum):
    """Type of stored activations; float16 halves the size, and some readers refuse it."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How activations are stored.

    Attributes:
        dtype: `float32`, or `float16` (netCDF-4 and browser viewers cannot read it).
        codec: `none`; `gzip`, which every reader has; `zstd`, faster, for readers with hdf5plugin
            (`pip install 'featuremaps[zstd]'`).
        shard_samples: samples per shard, rounded up to whole batches; None chooses shards of about
            256 MB, 256 at most.
    """

    dtype: StoredType = StoredType.FLOAT32
    codec: Codec = Codec.NONE
    shard_samples: int | None = None

    def __post_init__(self) -> None:
        try:
            ready([self.codec])
        except ArchiveError as error:
            raise ValueError(f"codec: {error}") from None
        if self.shard_samples is not None and self.shard_samples < 1:
            raise ValueError(f"shard_samples must be at least 1, got {self.shard_samples}")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Which part of the work this process does: part `index` of `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ValueError(
                f"index must be in 0..count-1, got index {self.index} of count {self.count}"
            )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of an extraction that are single values.

    Attributes:
        archive: folder of the archive.
        device: `auto`, `cpu`, `cuda`, `cuda:n` or `mps`.
        precision: arithmetic of the forward pass.
        seed: of random weights.
        on_error: what to do with an image that cannot be used.
        max_errors: stop when more samples than this cannot be used; None sets no limit.
        on_nonfinite: what to do with NaN or infinity in an activation.
        resume: whether an unfinished archive is continued.
        channels_last: whether the model runs in the channels-last memory format; values differ by
            rounding. None takes it where it is faster and the dry batch agrees.
        compile: whether the model goes through torch.compile; its activations are compared with the
            plain model's before the work begins.
        early_stop: whether a forward pass ends after the last selected layer.
    """

    archive: str | None = None
    device: str = "auto"
    precision: Precision = Precision.FLOAT32
    seed: int = 0
    on_error: OnError = OnError.RAISE
    max_errors: int | None = None
    on_nonfinite: OnNonfinite = OnNonfinite.KEEP
    resume: bool = True
    channels_last: bool | None = None
    compile: bool = False
    early_stop: bool = True

    def __post_init__(self) -> None:
        if self.max_errors is not None and self.max_errors < 0:
            raise ValueError(f"max_errors must be at least 0, got {self.max_errors}")


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` takes CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: when it does not exist here.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            # torchrun's ranks on one machine take a GPU each
            local = int(os.environ.get("LOCAL_RANK", "0"))
            return torch.device("cuda", local % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"device: {name!r} is none; choose auto, cpu, cuda, cuda:0 or mps"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {name} is not here ({torch.cuda.device_count()} CUDA devices); try device=cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: mps is not here; try device=cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(
            f"device: {name!r} is not supported; choose auto, cpu, cuda, cuda:0 or mps"
        )
    return device


@contextmanager
def reproducible(seed: int) -> Iterator[dict[str, Any]]:
    """Make torch give the same numbers every time, and put everything back afterwards.

    TF32 and cuDNN's benchmark are off, deterministic algorithms are asked for (a warning where
    there is none).

    Yields:
        The settings, for the manifest.
    """
    import torch

    deterministic: Any = torch.utils.deterministic
    before = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling every new tensor costs a pass over all activations, and hides nothing here.
        deterministic.fill_uninitialized_memory = False
        try:
            yield {"tf32": False, "cudnn_benchmark": False, "deterministic": True}
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before[0]
            torch.backends.cudnn.allow_tf32 = before[1]
            torch.backends.cudnn.benchmark = before[2]
            torch.backends.cudnn.deterministic = before[3]
            torch.use_deterministic_algorithms(before[4], warn_only=before[5])
            deterministic.fill_uninitialized_memory = before[6]
