"""A user's own model: a class by its import path, with a state dict."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pipeline.foundation.configured import configured
from pipeline.foundation.errors import ConfigError, one_line, suggestion
from pipeline.foundation.paths import PathText
from pipeline.inputs.transforms import Transform
from pipeline.models.base import DEFAULT, Built, ModelSource


@configured
class CheckpointModel(ModelSource):
    """A class, or a function that returns a module, from any importable file.

    The current folder is searched too. The transform starts as ImageNet's (256, 224, its mean and
    std): set `model.transform.…` to what the model was trained with.

    Attributes:
        name: what to call the model; empty takes the class's name.
        class_path: `package.module.Class`, or `path/to/file.py:Class`, from the working folder on.
        weights: a path to a state dict (`.pt`, `.pth`, `.safetensors`), or null for seeded random.
        arguments: passed to the class.
        strict: whether every weight must fit; False loads what fits by name and shape.
    """

    kind: ClassVar[str] = "checkpoint"
    named_weights: ClassVar[bool] = False
    runs_code: ClassVar[str] = "imports the Python class that it names"

    compares_seeds: ClassVar[bool] = True

    name: str = ""
    class_path: PathText
    weights: PathText | None
    arguments: dict[str, Any] = field(default_factory=dict)
    strict: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            object.__setattr__(self, "name", re.split(r"[.:]", self.class_path)[-1])

    def build(self, seed: int) -> Built:
        """See `ModelSource.build`."""
        from torch import nn

        make = find(self.class_path)
        try:
            module = make(**self.arguments)
        except Exception as error:
            raise ConfigError(
                f"model.class_path: {self.class_path}(**model.arguments) failed: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"model.class_path: {self.class_path} gives a "
                f"{type(module).__name__}, no torch module"
            )
        if self.weights == DEFAULT:
            raise ConfigError(
                "model.weights: a class of your own has no DEFAULT; give a path to a state dict, "
                "or null for seeded random weights"
            )
        path = self.load_weights(module, strict=self.strict)
        return Built(module=module, transform=Transform(), file=path)


def find(class_path: str) -> Any:
    """Import `package.module.Name`, also from the current folder, or `path/to/file.py:Name`.

    Raises:
        ConfigError: when there is no such module or name.
    """
    of_file = ":" in class_path
    where, _, name = class_path.rpartition(":" if of_file else ".")
    if not where or not name:
        raise ConfigError(
            "model.class_path: give package.module.Class or path/to/file.py:Class, got "
            f"{class_path!r}"
        )
    place = Path(where).expanduser()
    if of_file and not place.is_file():
        raise ConfigError(f"model.class_path: there is no file {place.absolute()}")
    try:
        with importable(place.absolute().parent if of_file else Path.cwd()):
            module = _executed(place) if of_file else importlib.import_module(where)
    except Exception as error:
        searched = "" if of_file else f" (searched: {Path.cwd()} and the installed packages)"
        raise ConfigError(
            f"model.class_path: importing {where} failed: {type(error).__name__}: "
            f"{one_line(error)}{searched}"
        ) from error
    if not callable(getattr(module, name, None)):
        near = suggestion(name, [key for key, value in vars(module).items()
                                  if callable(value) and not key.startswith("_")])  # fmt: skip
        raise ConfigError(f"model.class_path: {where} has no class {name!r}; {near}")
    return getattr(module, name)


def _executed(file: Path) -> ModuleType:
    """Return a Python file as a module, under a name that no other has."""
    digest = hashlib.sha256(str(file.absolute()).encode()).hexdigest()
    name = f"{file.stem}_{digest[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for what looks its own module up
    spec.loader.exec_module(module)
    return module


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Put a folder at the end of the import path while the block runs."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
