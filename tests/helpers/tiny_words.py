"""The tiny model over a few images, as overrides."""

from __future__ import annotations

TINY = ("model=tiny", "dataset=synthetic", "dataset.samples=3", "device=cpu")
