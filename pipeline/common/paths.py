"""Local paths as arguments and configuration fields; URLs raise ConfigError."""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from pipeline.common.configured import Several
from pipeline.common.errors import FeaturemapsError
from pipeline.common.places import Place, place, refuse_url


def local_path(path: str | Path) -> Path:
    """Return a local path with `~` expanded; raise ConfigError for a URL."""
    return Path(refuse_url(path)).expanduser()


def confirm(*paths: Place) -> None:
    """Raise FeaturemapsError if an output of a command does not exist."""
    for path in paths:
        if not path.exists():
            raise FeaturemapsError(
                f"{path}: was written but no longer exists; run the same command again"
            )


def _as_text(value: object) -> object:
    if isinstance(value, Enum):  # torchvision's weights
        return value.name
    return os.fspath(value) if isinstance(value, os.PathLike) else value


PathText = Annotated[str, BeforeValidator(_as_text), AfterValidator(refuse_url)]
"""Configuration field for a path, or a text that may be a path."""
PathTexts = Annotated[tuple[PathText, ...], Several]


def _checked(url: str) -> str:
    if not url:
        raise ValueError("is empty; set it to a folder")
    place(url)
    return url


PlaceText = Annotated[str, BeforeValidator(_as_text), AfterValidator(_checked)]
"""Configuration field for a local path, or the URL of an archive."""
