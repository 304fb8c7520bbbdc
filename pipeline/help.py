"""The help of the commands that take overrides.

Read off the packaged configuration, without loading a model.
"""

from __future__ import annotations

import textwrap

from pipeline.conf import choices

_GROUPS = ("model", "layers", "dataset", "reduction", "renderers", "experiment")

KEYS = {
    "model.weights": "DEFAULT (the best the source has), a weights name, a path to a state dict, "
    "or null (random)",
    "layers.include": "names, globs such as layer*.conv?, or re:…",
    "layers.types": "only modules of these classes, e.g. [Conv2d]",
    "layers.exclude": "names, globs or re:… to leave out",
    "dataset.root": "folder of images (image_folder, flat_folder)",
    "dataset.limit": "only the first so many samples",
    "loader.batch_size": "samples per forward pass",
    "loader.num_workers": "processes that decode",
    "device": "auto, cpu, cuda, cuda:0, mps",
    "precision": "float32, bfloat16, float16 (autocast)",
    "storage.dtype": "float32 or float16",
    "on_error": "raise, or skip unreadable images",
    "archive": "folder of the archive; an unfinished one is continued",
    "render.samples": "all, a range 0:100, or ids [a,b]",
    "render.format": "png, webp, jpeg",
    "renderers.grid.maps": "how many feature maps a grid shows (columns, select, colormap, … "
    "likewise)",
    "hydra.run.dir": "the run's folder",
}
"""The keys that most people want; every one exists in the configuration (a test checks)."""

_EXAMPLES = {
    "run": "featuremaps run model=resnet18 layers=convs dataset=image_folder dataset.root=~/photos",
    "extract": "featuremaps extract model=vgg16 layers.include=[features.0,features.5] "
    "reduction=spatial_mean",
    "render": "featuremaps render archive=outputs/…/archive renderers=[grid,pca] "
    "renderers.grid.maps=64",
    "plan": "featuremaps plan model=vgg16 layers=convs dataset=image_folder dataset.root=~/photos",
    "layers": "featuremaps layers model=torchvision model.name=densenet121 model.weights=null "
    "--all",
}


def describe_overrides(name: str) -> str:
    """Return the help of `run`, `extract`, `render` or `layers`."""
    render_only = ("render", "renderers", "archive", "hydra")
    groups = [group for group in _GROUPS if (name != "render" or group == "renderers")]
    keys = {
        key: text
        for key, text in KEYS.items()
        if name != "render" or key.split(".")[0] in render_only
    }
    if name in ("extract", "layers", "plan"):
        groups.remove("renderers")
        keys = {key: text for key, text in keys.items() if not key.startswith("render")}
    lines = [
        f"featuremaps {name} [group=choice] [key=value] …",
        "",
        f"  e.g. {_EXAMPLES[name]}",
        "",
        "Choices",
    ]
    for group in groups:
        lines += _wrapped(group, " ".join(choices(group)))
    lines += ["", "Keys"]
    for key, text in keys.items():
        lines += _wrapped(key, text)
    lines += [
        "",
        f"featuremaps {name} --cfg job    shows every key with its value (overrides included)",
    ]
    if name == "layers":
        lines[-1] = "--all: also layers that are not selected; --json: for programs"
    elif name == "plan":
        lines[-1] = "--json: for programs; exit code 3 where it does not fit"
    return "\n".join(lines) + "\n"


def _wrapped(name: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, width=80, break_on_hyphens=False) or [""]
    return [f"  {name:20} {lines[0]}", *(f"  {'':20} {line}" for line in lines[1:])]
