"""Type alias for NumPy arrays; docstrings give shapes and dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
