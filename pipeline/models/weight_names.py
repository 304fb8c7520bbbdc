"""Weight names: those of a checkpoint become those of the model, whatever it was wrapped in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

_WRAPPERS = ("_orig_mod", "module")
"""Parts of names that torch.compile and DataParallel put in."""

_DEEPEST = 3


def unwrapped(names: Iterable[str], own: Collection[str]) -> Callable[[str], str]:
    """Return what takes wrappers' parts out of a name, unless the model's own names have them.

    >>> unwrapped(["module.a._orig_mod.b"], ["a.b"])("module.a._orig_mod.b")
    'a.b'
    """
    own_parts = {part for name in own for part in name.split(".")}
    drop = {wrapper for wrapper in _WRAPPERS if wrapper not in own_parts}
    if not any(drop & {*name.split(".")} for name in names):
        return lambda name: name
    return lambda name: ".".join(part for part in name.split(".") if part not in drop)


def best_prefix(names: Collection[str], own: Collection[str]) -> tuple[str, int]:
    """Return the prefix under which most of the model's own names are found, and how many.

    >>> best_prefix(["model.a.weight", "model.a.bias", "loss.weight"], ["a.weight", "a.bias"])
    ('model.', 2)
    """
    there = set(names)
    prefixes = {""}
    for name in names:
        parts = name.split(".")[:-1]
        prefixes |= {".".join(parts[:n]) + "." for n in range(1, min(len(parts), _DEEPEST) + 1)}
    found = {p: sum(p + name in there for name in own) for p in sorted(prefixes)}
    best = max(found, key=lambda p: (found[p], -len(p)))
    return best, found[best]


def added_prefix(names: Collection[str], own: Collection[str]) -> str:
    """Return the prefix that all of the model's own names have and the checkpoint's lack.

    Empty unless it makes every name fit.

    >>> added_prefix(["a.weight"], ["backbone.a.weight"])
    'backbone.'
    """
    first = min(own, default="").split(".")
    for n in range(1, min(len(first), _DEEPEST + 1)):
        prefix = ".".join(first[:n]) + "."
        if all(name.startswith(prefix) and name.removeprefix(prefix) in names for name in own):
            return prefix
    return ""
