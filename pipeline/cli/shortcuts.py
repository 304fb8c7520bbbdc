"""Short forms of overrides, expanded where their meaning is unambiguous.

Other short forms are errors that name the full override.
"""

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from pipeline.archive.format.schema import archives_of
from pipeline.cli.model_names import refuse, resolved
from pipeline.cli.overrides import (
    GROUPS,
    TAKE_A_VALUE,
    choices_in,
    given_folders,
    is_sweep,
    one_list,
)
from pipeline.cli.quoting import listed, split, texts_of
from pipeline.common.errors import ConfigError, suggestion
from pipeline.common.places import local, place
from pipeline.config.config_docs import choices, conf_folder
from pipeline.config.keys import default_kind, full_keys, kinds_with, known_keys

_BARE = re.compile(r"[^=+~-][^=]*")
_BY_KEYS = ("model", "dataset", "reduction")
"""Groups whose choice may follow from a key."""
_BARE_GROUPS = ("model", "experiment", "layers", "dataset", "reduction", "renderers")
_SYNONYMS = {
    "dataset.root": ("data", "data_dir", "images", "image", "photos", "folder", "dir", "input"),
    "hydra.run.dir": ("out", "output", "outdir", "out_dir", "output_dir", "outputs", "save_dir"),
    "model.weights": ("ckpt", "checkpoint", "state_dict"),
    "model.weights=null": ("pretrained", "random", "random_weights"),
    "loader.batch_size": ("batch", "bs", "batchsize"),
    "loader.num_workers": ("workers", "jobs", "threads"),
    "dataset.limit": ("n", "num", "num_images", "num_samples", "max_samples", "first"),
    "layers.include": ("layer", "module", "modules", "node", "nodes"),
    "device=cuda": ("gpu", "gpus", "cuda"),
    "device=cpu": ("cpu", "no_cuda"),
    "model": ("arch", "architecture", "network", "net", "backbone"),
    "renderers": ("renderer", "render", "draw"),
    "reduction": ("pool", "pooling", "reduce"),
    "storage.dtype=float16": ("half", "fp16", "float16"),
}
"""Key or full override → names in other tools."""


def spelled_out(words: Sequence[str], root: str, command: str = "") -> list[str]:
    """Return a command line with its short forms expanded.

    >>> spelled_out(["--model", "resnet18", "weights=null", "layers=layer4"], "extract")
    ['model=resnet18', 'model.weights=null', 'layers.include=[layer4]']
    >>> spelled_out(["some/run", "pca"], "render")
    ['archive=some/run', 'renderers=[pca]']
    """
    folders = given_folders(words)
    joined = _joined(words, root)
    overrides: list[str] = []
    for before, word in zip(["", *joined], joined, strict=False):
        flag = word.startswith("-") or before in TAKE_A_VALUE
        overrides += [word] if flag else [_full_key(_bare(word, root, folders), root, folders)]
    overrides = one_list(overrides, "renderers")
    sweep = is_sweep(words)
    if root == "render":
        return overrides if sweep else _sweep_drawn(overrides)
    keys = {word.partition("=")[0].lstrip("+") for word in overrides}
    line = [command or root, *overrides]
    for group in _BY_KEYS:
        if group not in keys and not _chosen_elsewhere(group, overrides, folders):
            line[1:] = _with_choice(group, line, root)
    return [
        override
        for word in line[1:]
        for override in _group_spelled_out(word, folders, line, sweep=sweep)
    ]


def _sweep_drawn(words: list[str]) -> list[str]:
    """Return a command line that renders every archive of a sweep, if it names a sweep folder."""
    archive_word = next((word for word in words if word.startswith("archive=")), "")
    value = archive_word.partition("=")[2]
    folder = local(place(value)) if value else None
    archives = [str(path) for path in archives_of(folder)] if folder else []
    if len(archives) < 2:
        return words
    words = [word.replace("hydra.run.dir=", "hydra.sweep.dir=", 1) for word in words]
    return ["-m", *(f"archive={','.join(archives)}" if w == archive_word else w for w in words)]


def _joined(words: Sequence[str], root: str) -> list[str]:
    """Join keys and values typed as two words or as a flag."""
    rest, joined = [*words], []
    while rest:
        word = rest.pop(0)
        if word in TAKE_A_VALUE:
            joined += [word, *rest[:1]]
            del rest[:1]
            continue
        following = rest[0] if rest and not rest[0].startswith("-") else ""
        name, equals, value = word.partition("=")
        key = name.lstrip("-").replace("-", "_") if name.startswith("--") else name
        known = key in GROUPS or bool(full_keys(root, key))
        if following == "=" and known and not equals:
            del rest[0]
            following = rest[0] if rest else ""
        if name.startswith("--") and known and (equals or not following or "=" in following):
            joined.append(f"{key}={value if equals else 'true'}")
        elif known and not value and following and "=" not in following:
            joined.append(f"{key}={following}")
            del rest[0]
        else:
            joined.append(word)
    return joined


def _bare(word: str, root: str, folders: Sequence[Path]) -> str:
    """Return the override for a word without a key."""
    if not _BARE.fullmatch(word):
        return word
    if root == "render":
        return f"renderers=[{word}]" if word in choices("renderers") else f"archive={word}"
    for group in _BARE_GROUPS:
        if word in choices_in(group, folders) and (group != "renderers" or root == "run"):
            return f"{group}=[{word}]" if group == "renderers" else f"{group}={word}"
    path = Path(word).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        if any((path / folder / "manifest.json").is_file() for folder in (".", "archive")):
            archive = shlex.quote(f"archive={word}")
            raise ConfigError(
                f"{word}: is an archive; to render it, use: featuremaps render {archive}"
            )
        return f"dataset.root={word}"
    for endings, key in (((".tar",), "dataset.shards"), ((".csv",), "dataset.path")):
        if word.endswith(endings):
            return f"{key}={word}"
    if path.is_file():
        from pipeline.datasets.raster import image_endings

        if path.suffix.lower() in image_endings():
            root = shlex.quote(f"dataset.root={path.parent}")
            raise ConfigError(f"{word}: is an image; give its folder: dataset=flat_folder {root}")
    return f"model={word}"


def _full_key(word: str, root: str, folders: Sequence[Path]) -> str:
    """Return an override with its full key."""
    key, equals, value = word.partition("=")
    if not equals or key in GROUPS or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
        return word
    if any((folder / key).is_dir() for folder in folders):  # a group of the user's own
        return word
    matches = full_keys(root, key)
    if len(matches) == 1:
        return f"{matches[0]}={value}"
    if matches:
        raise ConfigError(
            f"{key}: is ambiguous; use {' or '.join(f'{name}=…' for name in matches)}"
        )
    if "." in key:
        return word
    tops = [key for key in known_keys(root) if "." not in key]
    tops += [group for group in GROUPS if root != "render" or group == "renderers"]
    synonym = next((name for name, synonyms in _SYNONYMS.items() if key.lower() in synonyms), "")
    name = synonym.partition("=")[0]
    if name in (*tops, *known_keys(root), "hydra.run.dir"):
        override = synonym if "=" in synonym else f"{synonym}={value}"
        raise ConfigError(f"{key}: no such key; use {shlex.quote(override)}")
    leaves = {name.rpartition(".")[2]: name for name in reversed(known_keys(root))}
    similar = difflib.get_close_matches(key, [*tops, *leaves], n=1, cutoff=0.6)
    if similar and similar[0] not in tops:
        raise ConfigError(f"{key}: no such key; did you mean {leaves[similar[0]]}?")
    raise ConfigError(f"{key}: no such key; {suggestion(key, tops, every=True)}")


def _chosen_elsewhere(group: str, words: Sequence[str], folders: Sequence[Path]) -> bool:
    """Return whether a selected file, such as an experiment, may choose the group."""
    for word in words:
        key, _, name = word.lstrip("+").partition("=")
        if key in ("experiment", "sweep", "launch"):
            files = [folder / key / f"{name}.yaml" for folder in (conf_folder(), *folders)]
            texts = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
            lines = [line.partition("#")[0] for text in texts for line in text.splitlines()]
            if not texts or re.search(rf"\b{group}\b", "\n".join(lines)):
                return True
        elif key == "hydra.searchpath" or group in key.split("/"):
            return True
    return False


def _with_choice(group: str, line: Sequence[str], root: str) -> list[str]:
    """Return the words of a command line with the kind of a group that has the given keys."""
    words = [*line[1:]]
    keys = [match[1] for word in words if (match := re.match(rf"\+?{group}\.(\w+)", word))]
    kinds = kinds_with(group, keys)
    default = default_kind(root, group)
    if len(kinds) == 1:
        return [f"{group}={kinds[0]}", *words]
    if group == "model" and "name" in keys:
        word = next(word for word in words if word.startswith("model.name="))
        source = resolved(word, word.partition("=")[2], line)
        return [text for typed in words for text in (source if typed is word else [typed])]
    if not keys or not kinds or default in kinds:
        return words
    if group == "dataset" and "image_folder" in kinds:
        return ["dataset=image_folder", *words]
    choices_text = " or ".join(f"{group}={name}" for name in kinds)
    raise ConfigError(f"{group}.{keys[0]}: {default} has no such key; add {choices_text}")


def _group_spelled_out(
    word: str, folders: Sequence[Path], line: Sequence[str], *, sweep: bool
) -> list[str]:
    """Return the overrides for layer or model names that are not packaged configurations."""
    group, _, value = word.partition("=")
    names = choices_in(group, folders) if group in ("layers", "model") else []
    values = [texts_of(part)[0] for part in (listed if group == "layers" else split)(value)]
    unknown = [text for text in values if text not in (*names, "", "null")]
    of_hydra = "${" in value or re.match(r"(choice|glob|shuffle|sort)\(", value)
    if not names or not unknown or of_hydra or any("pkg://" in text for text in line):
        return [word]
    if group == "model":
        if len(values) == 1:
            return resolved(word, value, line)
        refuse(word, unknown[0], line)
    for text in unknown:
        similar = difflib.get_close_matches(text, names, n=1, cutoff=0.85)
        if similar and not text.startswith(similar[0]) and re.fullmatch(r"\w+", text):
            raise ConfigError(f"layers: unknown preset {text!r}; {suggestion(text, names)}")
    if len(unknown) < len(values):
        preset = next(text for text in values if text not in unknown)
        example = (
            "'layers.include=[layer1],[layer2]'" if sweep else "layers.include=[layer1,layer2]"
        )
        raise ConfigError(
            f"{word}: {preset} is a preset and {unknown[0]} is a layer; use layers only: {example}"
        )
    inside = [f"[{text}]" for text in values] if sweep else [f"[{','.join(values)}]"]
    return [f"layers.include={','.join(inside)}"]
