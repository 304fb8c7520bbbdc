"""Errors for users: each has a one-line message (where, what, remedy) and an exit code.

Errors that users can cause are `FeaturemapsError`s; the command line prints the message and exits
with `exit_code`. Any other exception is reported as a bug.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import index
from typing import Any, Self, get_args


class FeaturemapsError(Exception):
    """Base class of errors that users can fix (exit code 1)."""

    exit_code = 1


class ConfigError(FeaturemapsError, ValueError):
    """An invalid key, name, type or range in a configuration, or wrong usage (exit code 2)."""

    exit_code = 2


class LayerError(ConfigError):
    """A layer that does not exist, does not run, or returns no tensor per sample (exit code 2)."""


class WeightsError(FeaturemapsError):
    """Weights that cannot be downloaded, read or loaded into the model (exit code 1)."""


class SampleError(FeaturemapsError):
    """A dataset item that cannot be read or decoded (exit code 1)."""


class ArchiveError(FeaturemapsError):
    """An archive that is damaged, incomplete, in use, or not an archive (exit code 1)."""


class ArchiveBusyError(ArchiveError):
    """An archive that another process is writing (exit code 1)."""


class StoreError(FeaturemapsError):
    """An object store that cannot be reached or refuses a request (exit code 1)."""


class RenderError(FeaturemapsError):
    """A rendering process that died, e.g. was killed (exit code 1)."""


class SweepError(FeaturemapsError):
    """A sweep in which a job failed or died (exit code 1)."""


class DoesNotFitError(FeaturemapsError):
    """A planned archive that does not fit on the disk (exit code 3)."""

    exit_code = 3


class DiskFullError(FeaturemapsError):
    """A disk that is full while writing; finished shards are intact (exit code 5)."""

    exit_code = 5


class Interrupted(KeyboardInterrupt):
    """A stop by a signal between two batches; the same command resumes (exit code 130 or 143).

    Not an Exception, so that it ends loops and sweeps that go on after an error.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[Self], tuple[str, int]]:
        """Pickle both arguments; errors of sweep processes are pickled."""
        return type(self), (str(self), self.exit_code)


SKIPPED_EXIT_CODE = 4
"""Exit code of a run that finished but skipped samples."""


@contextmanager
def reraised(
    text: str,
    kind: type[FeaturemapsError] = ConfigError,
    of: type[BaseException] | tuple[type[BaseException], ...] = Exception,
    hint: str = "",
) -> Iterator[None]:
    """Raise exceptions of other code as one line: `text`, what they say, and `hint`."""
    try:
        yield
    except FeaturemapsError:
        raise
    except of as error:
        cause = getattr(error, "strerror", None) or one_line(error, limit=200)
        if isinstance(error, KeyError) or not cause:
            cause = f"{type(error).__name__}: {cause}".removesuffix(": ")
        raise kind(f"{text}: {cause}{hint}") from error


def nearest(wrong: str, valid: Iterable[str], *, limit: int = 3) -> list[str]:
    """Return up to `limit` valid names with the prefix `wrong`, or the most similar, best first.

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
    matches = difflib.get_close_matches(folded_wrong, list(folded), n=limit, cutoff=0.55)
    likeness = [difflib.SequenceMatcher(None, name, folded_wrong).ratio() for name in matches]
    return [
        folded[name]
        for name, ratio in zip(matches, likeness, strict=True)
        if ratio >= likeness[0] - 0.1
    ]


def suggestion(wrong: str, valid: Iterable[str], *, every: bool = False) -> str:
    """Return the remedy for a mistyped name: similar names, or up to 12 valid ones.

    With `every`, list all valid names.

    >>> suggestion("gird", ["grid", "pca"])
    'did you mean grid?'
    >>> suggestion("x", ["grid", "pca"])
    'choose from: grid, pca'
    """
    names = list(dict.fromkeys(valid))
    similar = nearest(str(wrong), names)  # shuffle=True
    if similar:
        return f"did you mean {' or '.join(similar)}?"
    if not names:
        return "no names are available"
    limit = len(names) if every else 12
    text = ", ".join(names[:limit])
    return f"choose from: {text}" + (f", … ({len(names)} in all)" if len(names) > limit else "")


def known(word: str, valid: Iterable[str], what: str) -> str:
    """Return a word that is valid; `what` begins the message of the error for others."""
    if word not in (names := [*valid]):
        raise ConfigError(f"{what} {word!r}; {suggestion(word, filter(None, names))}")
    return word


def member(kind: Any, word: str, what: str) -> Any:
    """Return a word that is a value of a Literal; see `known`."""
    return known(word, get_args(kind), what)


def whole(what: str, value: object, least: int) -> int:
    """Return a number, perhaps NumPy's, as Python's, which JSON can store; `what` begins the
    message of the error.
    """
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ConfigError(f"{what} must be a whole number, got {value!r}")
    if number < least:
        raise ConfigError(f"{what} must be at least {least}, got {number}")
    return number


def listed(names: Sequence[str], limit: int = 3) -> str:
    """Join the first names, and count the others.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    others = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {others} more" if others > 0 else "")


def plural(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "sample"), plural(12000, "sample")
    ('1 sample', '12,000 samples')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def one_line(text: object, *, limit: int = 500) -> str:
    """Return `text` as one printable line; control characters and line breaks become spaces.

    >>> one_line("a" + chr(10) + "b" + chr(27) + "[31m")
    'a b [31m'
    """
    try:
        text = str(text)
    except Exception:  # noqa: BLE001 - an exception class of the user's own
        text = "no message"
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
