"""A user's own model: a class given by its import path, with a state dict."""

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pipeline.common.configured import configured
from pipeline.common.errors import ConfigError, suggestion
from pipeline.common.paths import PathText
from pipeline.models.base import DEFAULT, ModelBundle, ModelSource
from pipeline.models.own_code import folder_kept, own_code
from pipeline.models.transforms import Transform


@configured
class CheckpointModel(ModelSource):
    """A class, or a function that returns a module, from any importable file.

    The current folder is on the import path, and so is the file's folder; `sys.argv` has no
    arguments during the import. The default transform is ImageNet's (256, 224, its mean and std):
    set `model.transform.…` to the preprocessing that the model was trained with.

    Attributes:
        name: a display name; empty uses the class's name.
        class_path: `package.module.Class`, or `path/to/file.py:Class` relative to the working
            folder.
        weights: a path to a state dict (`.pt`, `.pth`, `.safetensors`), or null for seeded random.
        arguments: passed to the class.
        strict: whether every weight must fit; False loads the weights that fit by name and shape.
    """

    type_key: ClassVar[str] = "checkpoint"
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

    def build(self, seed: int) -> ModelBundle:
        result = called(self.class_path, "model.class_path", self.arguments)
        module = as_module(result, f"model.class_path: {self.class_path}")
        if self.weights == DEFAULT:
            raise ConfigError(
                "model.weights: a class of your own has no DEFAULT; use a path to a state dict, "
                "or null for seeded random weights"
            )
        path = self.load_weights(module, strict=self.strict)
        return ModelBundle(module=module, transform=Transform(), file=path)


_changed_to: dict[Path, Path] = {}
"""Imported code → the folder that it made the current one."""


@folder_kept()
def called(class_path: str, key: str, arguments: Mapping[str, Any]) -> Any:
    """Import a class or function of the user and call it with `arguments`.

    It is `package.module.Name`, also from the current folder, or `path/to/file.py:Name`.
    """
    in_file = ":" in class_path
    where, _, name = class_path.rpartition(":" if in_file else ".")
    if not where or not name:
        raise ConfigError(
            f"{key}: {class_path!r} is not a class path; use package.module.Class or "
            "path/to/file.py:Class"
        )
    from torch.random import fork_rng

    here = Path.cwd()
    file = here / Path(where).expanduser()
    if in_file and not file.is_file():
        remedy = "" if file.suffix else f"; for a module, use {where}.{name}"
        raise ConfigError(f"{key}: {file} does not exist{remedy}")
    folder = file.parent if in_file else here
    searched = "" if in_file else f" (searched: {folder} and the installed packages)"
    run = own_code(f"{key}: importing {where} failed", folder, where, searched)
    with fork_rng(devices=[]), run:  # a second import in this process draws no numbers
        module = _executed(file) if in_file else importlib.import_module(where)
    if here != Path.cwd():
        _changed_to[file] = Path.cwd()
    # Modules that were imported before do not change it again.
    os.chdir(_changed_to.get(file, here))
    make = getattr(module, name, None)
    if not callable(make):
        hint = suggestion(name, [key for key, value in vars(module).items()
                                  if callable(value) and not key.startswith("_")])  # fmt: skip
        raise ConfigError(f"{key}: {where} has no class or function {name!r}; {hint}")
    with own_code(f"{key}: {class_path}(**model.arguments) failed", folder, where):
        return make(**arguments)


def as_module(result: Any, where: str) -> Any:
    """Return the result of a user's class or function; raise unless it is a torch module."""
    from torch import nn

    if not isinstance(result, nn.Module):
        raise ConfigError(f"{where}: {type(result).__name__} is not a torch module")
    return result


def _executed(file: Path) -> ModuleType:
    """Import a Python file under a unique module name."""
    digest = hashlib.sha256(str(file).encode()).hexdigest()
    name = f"{file.stem}_{digest[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for code that looks up its own module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        if "relative import" not in str(error):
            raise
        return _of_package(file)
    return module


def _of_package(file: Path) -> ModuleType:
    """Import a Python file with relative imports as a module of its package."""
    root, name = file.parent.parent, f"{file.parent.name}.{file.stem}"
    while (root / "__init__.py").is_file():
        root, name = root.parent, f"{root.name}.{name}"
    sys.path.append(str(root))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(root))
