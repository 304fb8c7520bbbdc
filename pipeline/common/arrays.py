"""Type alias for NumPy arrays; docstrings give shapes and dtypes."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
