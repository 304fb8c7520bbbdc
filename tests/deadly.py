"""A dataset that kills its process, for sweeps that must survive it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from pipeline.datasets.base import Images
from pipeline.datasets.synthetic import Synthetic


@dataclass(frozen=True, kw_only=True)
class Deadly(Synthetic):
    """Synthetic images; asked for thirteen, it ends its process without a word."""

    def open(self) -> Images:
        """See `ImageDataset.open`."""
        if self.samples == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open()
