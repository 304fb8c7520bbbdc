"""Local paths; URLs are refused until they are supported, or they would become local folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator

from pipeline.common.configured import Several
from pipeline.common.errors import ConfigError, FeaturemapsError

P = TypeVar("P", bound=str | Path)

_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]+):/"


def refuse_url(path: P) -> P:
    """Return a path unchanged.

    >>> refuse_url("C:/data")
    'C:/data'
    """
    slashes = "/" if isinstance(path, str) else "*"  # `Path` makes one slash of two
    if match := re.match(_SCHEME + slashes, str(path)):
        url = f"{match[1]}://{str(path)[match.end() :]}"
        raise ConfigError(f"{url} is a URL; copy or mount the data and give a local path")
    return path


def local_path(path: str | Path) -> Path:
    """Return a path with the home folder in place of `~`."""
    return Path(refuse_url(path)).expanduser()


def confirm(*paths: Path) -> None:
    """Check that what a command has made is there: exit code 0 means that."""
    for path in paths:
        if not path.exists():
            raise FeaturemapsError(f"{path}: written, but not there at the end; run it again")


PathText = Annotated[str, AfterValidator(refuse_url)]
"""A field of a configuration that is a path, or may be one."""
PathTexts = Annotated[tuple[PathText, ...], Several]
