"""Resolution of model names that are not packaged configurations.

Hydra's `model=` takes names of configurations; users type the names that libraries, hubs and model
cards use.
"""

import re
import shlex
from collections.abc import Sequence
from typing import NoReturn

from pipeline.cli.overrides import choices_in, given_folders
from pipeline.common.errors import ConfigError, nearest, suggestion
from pipeline.common.paths import local_path
from pipeline.config.config_docs import choices

_PREFIXES = {
    "timm/": ("timm", True), "hf-hub:": ("timm", True), "hf_hub:": ("timm", True),
    "local-dir:": ("timm", True), "timm:": ("timm", False), "timm.": ("timm", False),
    "torchvision/": ("torchvision", False), "torchvision:": ("torchvision", False),
    "torchvision.models.": ("torchvision", False), "transformers/": ("transformers", False),
    "transformers:": ("transformers", False), "huggingface/": ("transformers", False),
    "hf/": ("transformers", False),
}  # fmt: skip
"""Prefix → source, and whether `model.name` keeps the prefix."""
_REPOSITORIES = {
    r"dinov3_\w+": "facebookresearch/dinov3",
    r"dinov2_\w+": "facebookresearch/dinov2",
    r"dino_\w+": "facebookresearch/dino:main",
    r"resnet\w+_swsl|resnet\w+_ssl": "facebookresearch/semi-supervised-ImageNet1K-models",
    r"resnet50_vicreg|vicreg\w*": "facebookresearch/vicreg:main",
    r"yolov5\w*": "ultralytics/yolov5",
}
"""Pattern of torch.hub entry points that no library has → repository."""
_PLACEHOLDERS = ("CLASS", "ENTRY_POINT")
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")


def resolved(word: str, name: str, line: Sequence[str]) -> list[str]:
    """Return the overrides that replace the `word` of a command line that selects a model.

    Raise ConfigError unless one source has a model of this `name`.
    """
    if name in choices("model"):
        return [f"model={name}"]
    ways = _by_form(name) or _by_name(name)
    if len(ways) != 1 or ways[0][-1].endswith(_PLACEHOLDERS):
        refuse(word, name, line, ways)
    return ways[0]


def refuse(word: str, name: str, line: Sequence[str], ways: Sequence[list[str]] = ()) -> NoReturn:
    """Raise ConfigError for an unknown model, with the commands that may be meant."""
    where = word if word.endswith(f"={name}") else f"{word}: {name}"
    if ways := ways or _by_form(name) or _by_name(name):
        raise ConfigError(f"{where}: not a packaged model; use {_commands(word, line, ways)}")
    if ways := _hugging_face(name):
        raise ConfigError(
            f"{where}: a Hugging Face model family; use {_commands(word, line, ways)}"
        )
    if repository := next((r for p, r in _REPOSITORIES.items() if re.fullmatch(p, name)), ""):
        way = ["model=hub", f"model.repo={repository}", f"model.name={name}", "model.trust=true"]
        others = [["model=timm", f"model.name={model}"] for model in _alike(name)[:1]]
        raise ConfigError(
            f"{where}: a torch.hub entry point, whose code is downloaded and run; use "
            f"{_commands(word, line, [way])}"
            + (f" or, from timm, {_commands(word, line, others)}" if others else "")
        )
    hint = suggestion(name, choices_in("model", given_folders(line)))
    ways = [] if hint.startswith("did you mean") else _similar(name)
    raise ConfigError(
        f"model: unknown model {name!r}; "
        + (f"did you mean {_commands(word, line, ways)}?" if ways else hint)
        + " (or any model of torchvision, timm or transformers: model=timm model.name=NAME)"
    )


def _commands(word: str, line: Sequence[str], ways: Sequence[list[str]]) -> str:
    """Return the command lines in which each way replaces the word."""
    lines = [
        [text for typed in line for text in (way if typed == word else [typed])] for way in ways
    ]
    return " or ".join(shlex.join(["featuremaps", *words]) for words in lines)


def _by_form(name: str) -> list[list[str]]:
    """Return the overrides that the form of a name implies, such as a prefix or a file ending."""
    for prefix, (source, full) in _PREFIXES.items():
        if name.startswith(prefix) and name != prefix:
            return [[f"model={source}", f"model.name={name if full else name[len(prefix) :]}"]]
    path, _, owner = name.partition(":")
    if (path.endswith(".py") and owner) or re.fullmatch(r"[a-z_]\w*(\.\w+)*\.[A-Z]\w*", name):
        return [["model=checkpoint", f"model.class_path={name}"]]
    folder = local_path(name)
    if path.endswith(".py"):
        return [["model=checkpoint", f"model.class_path={name}:CLASS"]]
    if name.lower().endswith(_CHECKPOINTS):
        return [
            ["model=checkpoint", f"model.weights={name}", "model.class_path=FILE.py:CLASS"],
            ["model=resnet18", f"model.weights={name}"],
        ]
    if (config := folder / "config.json").is_file():
        timm = '"architecture"' in config.read_text(encoding="utf-8", errors="replace")
        source = "timm" if timm else "transformers"
        return [[f"model={source}", f"model.name={f'local-dir:{name}' if timm else name}"]]
    if (folder / "hubconf.py").is_file():
        return [["model=hub", f"model.repo={name}", "model.name=ENTRY_POINT"]]
    openai = re.fullmatch(r"ViT-./\d+(@\w+)?", name, re.IGNORECASE)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not folder.exists() and not openai:
        return [["model=transformers", f"model.name={name}"]]
    return []


def _by_name(name: str) -> list[list[str]]:
    import timm
    from torchvision import models

    ways = []
    if name in models.list_models():
        ways.append(["model=torchvision", f"model.name={name}"])
    if timm.is_model(name.partition(".")[0]):
        ways.append(["model=timm", f"model.name={name}"])
    return ways


def _hugging_face(name: str) -> list[list[str]]:
    """Return the overrides for a transformers model type: with its usual weights, or random."""
    try:
        import transformers
    except ImportError:
        return []
    plain = name.lower().replace("-", "_")
    parts = {kind: kind.replace("-", "_") for kind in transformers.CONFIG_MAPPING}
    kinds = [kind for kind, text in parts.items() if text == plain]
    kinds += [kind for kind, text in parts.items() if plain in text.split("_")]
    if clip := re.fullmatch(r"vit_([bl])/(\d+)(@\w+)?", plain):  # the names in OpenAI's package
        size = {"b": "base", "l": "large"}[clip[1]]
        return [["model=transformers", f"model.name=openai/clip-vit-{size}-patch{clip[2]}"]]
    if not kinds:
        return []
    kind = kinds[0]
    text = transformers.CONFIG_MAPPING[kind].__doc__ or ""
    weights = re.search(r"\[([\w-]+/[\w.-]+)\]\(https://huggingface", text)
    return [
        *([["model=transformers", f"model.name={weights[1]}"]] if weights else []),
        ["model=transformers", f"model.name={kind}", "model.weights=null"],
    ]


_SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}


def _alike(name: str) -> list[str]:
    """Return timm models that share parts of their names with `name`, best match first."""
    import timm

    full = re.sub(
        r"vit_?([tsblhg])_?(\d+)", lambda m: f"vit_{_SIZES[m[1]]}_patch{m[2]}", name.lower()
    )
    words = {part for part in re.split(r"[\W_]+", full) if len(part) > 2}
    shared = {model: words & set(model.split("_")) for model in timm.list_models()}
    names = [model for model, parts in shared.items() if parts]
    return sorted(names, key=lambda model: (-len(shared[model]), len(model), model))


def _similar(name: str) -> list[list[str]]:
    """Return the overrides of up to three similar models of torchvision and timm."""
    import timm
    from torchvision import models

    plain = re.sub(r"[^a-z0-9.]+", "_", name.lower())
    sources = dict.fromkeys(timm.list_models(), "timm")
    sources |= dict.fromkeys(models.list_models(), "torchvision")
    longer = sorted((model for model in sources if model.startswith(plain)), key=len)
    matches = longer or _alike(plain) or nearest(plain, sources)
    return [[f"model={sources[model]}", f"model.name={model}"] for model in matches[:3]]
