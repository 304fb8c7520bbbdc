"""Plots: a figure that matplotlib drew, as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Plot:
    """A figure with axes."""

    made: Figure

    @property
    def rgb(self) -> Array:
        """Its pixels, uint8 `(height, width, rgb)`."""
        canvas: Any = FigureCanvasAgg(self.made)  # its methods are untyped
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def painted(self) -> tuple[Array, None]:
        """Return its pixels, and no palette."""
        return self.rgb, None

    def figure(self) -> Figure:
        """Return the figure itself."""
        return self.made
