"""Environment: versions, hardware and source revision for an archive's manifest."""

import platform
import re
import subprocess
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

VALUE_AFFECTING = (
    "featuremaps", "torch", "torchvision", "timm", "transformers", "pillow", "numpy"
)  # fmt: skip
"""Distributions whose version can change a stored value: part of the fingerprint."""

_OTHERS = (
    "datasets", "safetensors", "h5py", "hydra-core", "omegaconf", "scikit-image", "matplotlib"
)  # fmt: skip


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of the installed distributions among `names`."""
    installed = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def describe(device: torch.device) -> dict[str, Any]:
    """Return versions and hardware for the manifest."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(VALUE_AFFECTING + _OTHERS),
        "revision": revision(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }


@cache
def revision() -> str | None:
    """Return the git revision of this source tree, or None if it is not a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe"]
        options = ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
        process = subprocess.run(
            command + options, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip() or None


def _processor() -> str:
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if match := re.search(r"^model name.*?:(.*)", text, re.MULTILINE):
            return match[1].strip()
    return platform.processor() or platform.machine()
