"""Plug-ins: models, datasets, reductions and renderers, discovered in their packages."""

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import Any

from pipeline.common.configured import type_key_of
from pipeline.common.errors import reraised

PLUGINS = {
    "model": "pipeline.models.ModelSource",
    "dataset": "pipeline.datasets.ImageDataset",
    "reduction": "pipeline.extraction.reductions.Reduction",
    "renderers": "pipeline.renderers.Renderer",
}
"""Group → base class of its kinds, in the package where they are."""
SINGLE = {
    "layers": "pipeline.capture.selector.LayerSelector",
    "loader": "pipeline.extraction.settings.Loader",
    "storage": "pipeline.extraction.settings.Storage",
    "shard": "pipeline.extraction.settings.Shard",
    "render": "pipeline.rendering.options.RenderOptions",
    "sweep": "pipeline.config.sweep_options.SweepOptions",
}
"""Groups with a single kind → its class."""
SETTINGS = "pipeline.extraction.settings.Extraction"
RENDER_ROOT = ("render", "renderers")
BESIDE = (*RENDER_ROOT, "sweep")
"""Groups that an extraction does not depend on."""


def locate(path: str) -> Any:
    """Import `package.module.Name`."""
    module, _, name = path.rpartition(".")
    with reraised(f"{path!r} cannot be imported", of=(ImportError, AttributeError, ValueError)):
        return getattr(importlib.import_module(module), name)


@cache
def kinds(group: str) -> dict[str, type]:
    """Return kind → class for every plug-in in the package of a group."""
    package = importlib.import_module(PLUGINS[group].rpartition(".")[0])
    base = locate(PLUGINS[group])
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return {
        str(type_key_of(kind)): kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, base)
        and kind.__module__ == module.__name__
        and not kind.__name__.startswith("_")
        and not getattr(kind, "__abstractmethods__", None)
    }


def kinds_of(root: str) -> Iterator[tuple[str, str, type]]:
    """Yield group, kind and class of everything that a root configures; a single kind is ''."""
    groups = [group for group in (*PLUGINS, *SINGLE) if root == "run" or group not in RENDER_ROOT]
    for group in RENDER_ROOT if root == "render" else groups:
        several = kinds(group) if group in PLUGINS else {"": locate(SINGLE[group])}
        yield from ((group, name, kind) for name, kind in several.items())
