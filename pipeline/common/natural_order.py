"""Natural order of names: `epoch9` before `epoch10`."""

import re

from pipeline.common.places import Place


def natural_order(name: str | Place) -> list[tuple[int, int, str]]:
    """Return a sort key that orders numbers in names by value.

    >>> sorted(["epoch10", "epoch9", "Epoch1"], key=natural_order)
    ['Epoch1', 'epoch9', 'epoch10']
    """
    return [
        (0, int(part), part) if part.isdecimal() and len(part) < 19 else (1, 0, part.casefold())
        for part in re.split(r"(\d+)", str(name))
    ]
