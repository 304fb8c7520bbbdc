"""Arguments of one or several values."""

from collections.abc import Iterable
from typing import Any


def several(values: Any) -> list[Any]:
    """Return values as a list, also a single one.

    >>> several("layer1"), several(("layer1", "layer2")), several(None)
    (['layer1'], ['layer1', 'layer2'], [None])
    """
    single = isinstance(values, (str, bytes)) or not isinstance(values, Iterable)
    return [values] if single else list(values)
