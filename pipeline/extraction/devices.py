"""Devices: select the device of a run and make torch's results reproducible."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from pipeline.common.errors import ConfigError

_extracting = threading.RLock()
_changing = threading.Lock()
_settings = ExitStack()  # restores torch's settings, which all threads share
_blocks = 0


def choose_device(name: str) -> torch.device:
    """Return the device `name`; `auto` selects CUDA, else MPS, else the CPU; `gpu` the GPU."""
    if name == "auto":
        if torch.cuda.is_available():
            # each of torchrun's ranks on a machine uses its own GPU
            local = int(os.environ.get("LOCAL_RANK", "0"))
            return torch.device("cuda", local % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    typed, name = name, name.strip().lower()
    if name.isdecimal() or name.startswith("gpu"):
        gpu = "mps" if name == "gpu" and torch.backends.mps.is_available() else "cuda"
        name = f"cuda:{name}" if name.isdecimal() else gpu + name.removeprefix("gpu")
    device = None
    with suppress(RuntimeError):
        device = torch.device(name)
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device: unknown device {typed!r}; use auto, cpu, cuda, cuda:0 or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {name} is not available ({torch.cuda.device_count()} CUDA devices); use "
            "device=cpu or device=auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: mps is not available; use device=cpu or device=auto")
    return device


@contextmanager
def reproducible(seed: int, *, compiled: bool = False) -> Iterator[None]:
    """Be `deterministic` inside the block, with random numbers from a seed.

    The caller's autocast, inference mode and default device have no effect. Other threads wait for
    the block's end, as they share the random numbers.
    """
    with (
        _extracting,
        ExitStack() as stack,
        torch.random.fork_rng(devices=[]),
        deterministic(compiled=compiled),
        torch.inference_mode(False),
    ):
        for kind in ("cpu", "cuda", "mps"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        torch.manual_seed(seed)
        yield


@contextmanager
def deterministic(*, compiled: bool = False) -> Iterator[None]:
    """Make torch's operations deterministic inside the block.

    The end of the block, of the last one if several overlap, restores all settings.

    float32 has its full precision, and cuDNN's benchmark mode is off. Deterministic algorithms are
    enabled; torch warns if an operation has none. With `compiled`, also in what `torch.compile`
    generates.
    """
    global _blocks
    with _changing:
        if not _blocks:
            _settings.enter_context(settings_restored(compiled=compiled))
        _blocks += 1
    try:
        yield
    finally:
        with _changing:
            _blocks -= 1
            if not _blocks:
                _settings.close()


@contextmanager
def settings_restored(*, compiled: bool) -> Iterator[None]:
    """Be `deterministic` inside the block; its end also restores what code in it has set."""
    cudnn = torch.backends.cudnn
    settings: list[tuple[Any, str, bool]] = [
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", True),
        # Filling every new tensor costs a pass over all activations, without any effect here.
        (torch.utils.deterministic, "fill_uninitialized_memory", False),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    mode = torch.get_deterministic_debug_mode()
    # cuBLAS reads it when CUDA starts; without it, its sums depend on concurrent work.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for owner, name, value in settings:
        setattr(owner, name, value)
    _set_mode(1, compiled=compiled)
    try:
        with _full_float32():
            yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        _set_mode(mode, compiled=compiled)


@contextmanager
def _full_float32() -> Iterator[None]:
    """Compute float32 in full inside the block, not in TF32 or bfloat16.

    torch 2.9 has a second interface; once it was used, reading the first may raise RuntimeError.
    """
    backends: Any = torch.backends
    cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
    matmul = tf32 = None
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        tf32 = cudnn.allow_tf32
    owners: list[Any] = []
    if hasattr(backends, "fp32_precision"):
        owners = [backends, cudnn, cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv,
                  mkldnn.rnn]  # fmt: skip
    in_effect = [owner.fp32_precision for owner in owners]
    own = []
    for owner in owners:
        own.append(owner.fp32_precision)
        owner.fp32_precision = "none"  # the next ones no longer inherit it
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if tf32 is not None:
            cudnn.allow_tf32 = tf32
        # What is in effect may need more: a default that only shows where nothing is set.
        for owner, value in [*zip(owners, own, strict=True), *zip(owners, in_effect, strict=True)]:
            if owner.fp32_precision != value:
                owner.fp32_precision = value


def _set_mode(mode: int, *, compiled: bool) -> None:
    """Set the mode; for compiled models in full, which imports torch's compiler (1.4 s)."""
    if compiled:
        torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1)
    else:
        torch.set_deterministic_debug_mode(mode)
