"""Differences between nested plain values, as text."""

import json
from collections.abc import Mapping
from typing import Any


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return a line `path: old → new` for every difference between two nested plain values.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b: 1 → 3']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in [*old, *(key for key in new if key not in old)]
            for line in differences(
                old.get(key), new.get(key), f"{path}.{key}" if path else str(key)
            )
        ]
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        return [
            line
            for i, pair in enumerate(zip(old, new, strict=True))
            for line in differences(*pair, f"{path}[{i}]")
        ]
    return [] if old == new else [f"{path}: {_short(old)} → {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
