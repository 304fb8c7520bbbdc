"""Errors for people: each carries one line (what, where, what to do) and the process's exit code.

Everything that a user can cause is raised as a `FeaturemapsError`; the command line prints its text
on one line and leaves with its `exit_code`. Any other exception is a defect of ours and is reported
as such.
"""

import difflib
from collections.abc import Iterable
from typing import Self


class FeaturemapsError(Exception):
    """A failure that a user can understand and mend (exit code 1)."""

    exit_code = 1


class ConfigError(FeaturemapsError, ValueError):
    """A wrong key, name, type or range in a configuration, or wrong usage (exit code 2)."""

    exit_code = 2


class LayerError(ConfigError):
    """A layer that is not there, not reached, or returns no tensor per sample (exit code 2)."""


class WeightsError(FeaturemapsError):
    """Weights that cannot be fetched, read or fitted to the model (exit code 1)."""


class SampleError(FeaturemapsError):
    """A dataset item that cannot be read or decoded (exit code 1)."""


class ArchiveError(FeaturemapsError):
    """An archive that is damaged, incomplete, in use, or not one of ours (exit code 1)."""


class ArchiveBusyError(ArchiveError):
    """An archive that another process is writing (exit code 1)."""


class RenderError(FeaturemapsError):
    """Drawing that ended without a reason of its own, as when a process is killed (exit code 1)."""


class SweepError(FeaturemapsError):
    """A sweep of which some job failed in a way of its own, or died (exit code 1)."""


class DoesNotFitError(FeaturemapsError):
    """The planned archive does not fit on the disk (exit code 3)."""

    exit_code = 3


class DiskFullError(FeaturemapsError):
    """The disk filled up while writing; finished shards are intact (exit code 5)."""

    exit_code = 5


class Interrupted(FeaturemapsError):
    """A signal stopped the work between two batches; the same command goes on (130 or 143)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[Self], tuple[str, int]]:
        """Pickle both arguments: a sweep's processes hand their errors back."""
        return type(self), (str(self), self.exit_code)


SKIPPED_EXIT_CODE = 4
"""Exit code of a run that finished but had to skip samples."""


def nearest(wrong: str, valid: Iterable[str], *, limit: int = 3) -> list[str]:
    """Return up to `limit` valid names that begin with `wrong`, or else look most like it, best
    first.

    >>> nearest("resnet81", ["vgg11", "resnet18", "resnet50"])
    ['resnet18']
    >>> nearest("vit_small", ["gcvit_small", "vit_small_patch16_224"])
    ['vit_small_patch16_224']
    """
    names = sorted(set(valid))
    longer = [name for name in names if name.casefold().startswith(wrong.casefold())]
    if len(wrong) > 2 and longer:
        return sorted(longer, key=lambda name: (len(name), name))[:limit]
    folded = {name.casefold(): name for name in reversed(names)}
    folded_wrong = wrong.casefold()
    found = difflib.get_close_matches(folded_wrong, list(folded), n=limit, cutoff=0.55)
    likeness = [difflib.SequenceMatcher(None, name, folded_wrong).ratio() for name in found]
    return [
        folded[name]
        for name, ratio in zip(found, likeness, strict=True)
        if ratio >= likeness[0] - 0.1
    ]


def suggestion(wrong: str, valid: Iterable[str], *, whole: bool = False) -> str:
    """Return the end of an error line that helps with a mistyped name: near names, or a
    dozen of the valid ones (all of them with `whole`).

    >>> suggestion("gird", ["grid", "pca"])
    'did you mean grid?'
    >>> suggestion("x", ["grid", "pca"])
    'choose from: grid, pca'
    """
    names = list(dict.fromkeys(valid))
    near = nearest(wrong, names)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if not names:
        return "there are none to choose from"
    most = len(names) if whole else 12
    shown = ", ".join(names[:most])
    return f"choose from: {shown}" + (f", … ({len(names)} in all)" if len(names) > most else "")


def one_line(text: object, *, limit: int = 500) -> str:
    """Return `text` as a single printable line: control characters and line breaks become spaces.

    >>> one_line("a" + chr(10) + "b" + chr(27) + "[31m")
    'a b [31m'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
