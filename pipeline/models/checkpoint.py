"""A user's own model: a class by its import path, with a state dict."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import ConfigError, one_line, suggestion
from pipeline.foundation.configured import configured
from pipeline.inputs.transforms import Transform
from pipeline.models.base import DEFAULT, Built, ModelSource


@configured
class CheckpointModel(ModelSource):
    """A class, or a function that returns a module, from any importable file.

    The current folder is searched too. The transform starts as ImageNet's (256, 224, its mean and
    std): set `model.transform.…` to what the model was trained with.

    Attributes:
        name: what to call the model.
        class_path: `package.module.Class`.
        weights: a path to a state dict (`.pt`, `.pth`, `.safetensors`), or null for seeded random.
        arguments: passed to the class.
        strict: whether every weight must fit; False loads what fits by name and shape.
    """

    kind: ClassVar[str] = "checkpoint"
    named_weights: ClassVar[bool] = False
    runs_code: ClassVar[str] = "imports the Python class that it names"

    name: str = "custom"
    class_path: str
    weights: str | None
    arguments: dict[str, Any] = field(default_factory=dict)
    strict: bool = True

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
    """Import `package.module.Name`, also from the current folder.

    Raises:
        ConfigError: when there is no such module or name.
    """
    where, _, name = class_path.rpartition(".")
    if not where:
        raise ConfigError(f"model.class_path: give package.module.Class, got {class_path!r}")
    try:
        with current_folder_importable():
            module = importlib.import_module(where)
    except Exception as error:
        raise ConfigError(
            f"model.class_path: importing {where} failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    if not callable(getattr(module, name, None)):
        near = suggestion(name, [key for key in vars(module) if not key.startswith("_")])
        raise ConfigError(f"model.class_path: {where} has no class {name!r}; {near}")
    return getattr(module, name)


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Put the current folder at the end of the import path while the block runs."""
    folder = str(Path.cwd())
    added = folder not in sys.path and "" not in sys.path
    if added:
        sys.path.append(folder)
    try:
        yield
    finally:
        if added:
            sys.path.remove(folder)
