"""Help of the commands that take overrides, generated from the configuration docstrings."""

import textwrap

from pipeline.config.config_docs import choices, text_of

_GROUPS = ("model", "layers", "dataset", "reduction", "renderers", "experiment")

KEYS = (
    "model.weights", "model.transform", "layers.include", "layers.types", "layers.exclude",
    "layers.aliases", "dataset.limit", "loader.batch_size", "loader.num_workers", "device",
    "precision", "storage.dtype", "storage.codec", "on_error", "seed", "archive",
    "render.samples", "render.format", "render.figures", "renderers.grid.max_channels",
    "renderers.grid.colormap",
)  # fmt: skip
"""The most used keys; a test checks that they exist."""

_EXAMPLES = {
    "run": "featuremaps run model=resnet18 layers=convs dataset=image_folder dataset.root=~/photos",
    "extract": "featuremaps extract model=vgg16 layers.include=[features.0,features.5] "
    "reduction=spatial_mean",
    "render": "featuremaps render archive=outputs/…/archive renderers=[grid,pca] "
    "renderers.grid.max_channels=64",
    "plan": "featuremaps plan model=vgg16 layers=convs dataset=image_folder dataset.root=~/photos",
    "layers": "featuremaps layers model=torchvision model.name=densenet121 model.weights=null "
    "--all",
}
_FLAGS = {
    "layers": "--all: list every layer; --functions: and calls of functions; --json: print JSON",
    "plan": "--json: print JSON; exit code 3 if the archive does not fit on the disk",
}


def describe_overrides(name: str) -> str:
    """Return the help of `run`, `extract`, `render` or `layers`."""
    render_only = ("render", "renderers", "archive")
    groups = [group for group in _GROUPS if (name != "render" or group == "renderers")]
    keys = [key for key in KEYS if name != "render" or key.split(".")[0] in render_only]
    if name in ("extract", "layers", "plan"):
        groups.remove("renderers")
        keys = [key for key in keys if not key.startswith("render")]
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
    for key in keys:
        lines += _wrapped(key, text_of(key))
    lines += _wrapped("hydra.run.dir", "the run folder.")
    text = f"featuremaps {name} --cfg job    prints every key with its value (overrides included)"
    return "\n".join([*lines, "", _FLAGS.get(name, text)]) + "\n"


def _wrapped(name: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, width=76, break_on_hyphens=False) or [""]
    return [f"  {name:22} {lines[0]}", *(f"  {'':22} {line}" for line in lines[1:])]
