"""Plug-ins: models, datasets, reductions and renderers, found by looking into their folders."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

from pipeline.errors import ConfigError
from pipeline.names import one_line

# group → (where its plug-ins live, their base class)
PLUGINS = {
    "model": ("pipeline.models", "pipeline.models.base.ModelSource"),
    "dataset": ("pipeline.datasets", "pipeline.datasets.base.ImageDataset"),
    "reduction": ("pipeline.reductions", "pipeline.reductions.Reduction"),
    "renderers": ("pipeline.renderers", "pipeline.renderers.base.Renderer"),
}
SINGLE = {
    "layers": "pipeline.layers.LayerSelector",
    "loader": "pipeline.loader.Loader",
    "storage": "pipeline.execution.Storage",
    "shard": "pipeline.execution.Shard",
    "render": "pipeline.render.RenderOptions",
}
SETTINGS = "pipeline.execution.Settings"
RENDER_ROOT = ("render", "renderers")


def locate(path: str) -> Any:
    """Import `package.module.Name`.

    Raises:
        ConfigError: when there is no such thing.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path!r} cannot be imported: {one_line(error)}") from error


def plugins(group: str) -> Iterator[tuple[str, type]]:
    """Yield schema name and class of every plug-in of a group.

    Found by looking, there is no registry.
    """
    where, base_path = PLUGINS[group]
    base = locate(base_path)
    package = importlib.import_module(where)
    folder = getattr(package, "__path__", None)
    modules = (
        [package]
        if folder is None
        else [
            importlib.import_module(f"{where}.{found.name}")
            for found in pkgutil.iter_modules(folder)
        ]
    )
    for module in modules:
        for kind in vars(module).values():
            own = (
                isinstance(kind, type)
                and issubclass(kind, base)
                and kind.__module__ == module.__name__
            )
            if (
                own
                and not kind.__name__.startswith("_")
                and not getattr(kind, "__abstractmethods__", None)
            ):
                yield _snake(kind.__name__), kind


def plugin_names(group: str) -> set[str]:
    """Return the full names of a group's classes."""
    return {f"{kind.__module__}.{kind.__qualname__}" for _, kind in plugins(group)}


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
