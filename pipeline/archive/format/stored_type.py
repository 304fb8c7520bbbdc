"""Types of stored activations: their bits in a file, and the values that readers return.

NumPy has no bfloat16: in memory its bits are uint16, the upper half of a float32.
"""

from typing import Any

import numpy as np

from pipeline.common.arrays import Array

BFLOAT16 = "bfloat16"
_NAN = np.uint16(0x7FC0)


def bits_type(name: str) -> np.dtype[Any]:
    """Return the NumPy type with the same bits as the values in a file."""
    return np.dtype(np.uint16 if name == BFLOAT16 else name)


def value_type(name: str) -> np.dtype[Any]:
    """Return the NumPy type of the values that readers return."""
    return np.dtype(np.float32 if name == BFLOAT16 else name)


def decode(bits: Array, name: str) -> Array:
    """Return the values of stored rows: the same array unless the type is bfloat16."""
    return (bits.astype(np.uint32) << 16).view(np.float32) if name == BFLOAT16 else bits


def encode(values: Array, name: str) -> Array:
    """Return the stored bits of values from `decode`."""
    if name == BFLOAT16:
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    return values


def nan_bits(bits: np.dtype[Any]) -> Any:
    """Return NaN as stored in a type of `bits_type`."""
    return _NAN if bits == np.uint16 else bits.type(np.nan)
