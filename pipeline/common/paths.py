"""Local paths; URLs raise ConfigError, since they would become local folders."""

import re
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator

from pipeline.common.configured import Several
from pipeline.common.errors import ConfigError, FeaturemapsError

P = TypeVar("P", bound=str | Path)

_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]+):/"


def refuse_url(path: P) -> P:
    """Return a path unchanged; raise ConfigError for a URL.

    >>> refuse_url("C:/data")
    'C:/data'
    """
    slashes = "/" if isinstance(path, str) else "*"  # `Path` merges two slashes
    if match := re.match(_SCHEME + slashes, str(path)):
        url = f"{match[1]}://{str(path)[match.end() :]}"
        raise ConfigError(
            f"{url}: URLs are not supported; copy or mount the data and give a local path"
        )
    return path


def local_path(path: str | Path) -> Path:
    """Return a local path with `~` expanded; raise ConfigError for a URL."""
    return Path(refuse_url(path)).expanduser()


def confirm(*paths: Path) -> None:
    """Raise FeaturemapsError if an output of a command does not exist."""
    for path in paths:
        if not path.exists():
            raise FeaturemapsError(
                f"{path}: was written but no longer exists; run the same command again"
            )


PathText = Annotated[str, AfterValidator(refuse_url)]
"""Configuration field for a path, or a text that may be a path."""
PathTexts = Annotated[tuple[PathText, ...], Several]
