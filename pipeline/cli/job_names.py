"""Names of a sweep's jobs: model, layers and dataset, then whatever else sets a job apart.

Jobs that extract the same share an archive, whatever they draw and whichever shard they write:

    <sweep>/archives/resnet18--resnet_stages--image_folder
    <sweep>/resnet18--resnet_stages--image_folder--renderers.grid.colormap-magma

They need no quotes, neither in a shell nor in Hydra's grammar.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from pipeline.cli.quoting import texts_of

_OF_PICTURES = ("render", "renderers")
_ELSEWHERE = ("shard", "archive", "sweep", "launch")  # these set no archive apart
_FIRST = ("model", "model.name", "layers", "layers.include", "dataset")
_LONGEST = 100
_KEPT = 12
_SEPARATOR = "--"


def archive_name(overrides: Sequence[str], choices: Mapping[str, str | None]) -> str:
    """Return the folder name of the archive that a job writes.

    Args:
        overrides: of the job, `key=value`.
        choices: group → chosen configuration.

    >>> archive_name(["model=vgg11", "seed=3"], {"model": "vgg11", "dataset": "synthetic",
    ...                                          "layers@layers": "features"})
    'vgg11--features--synthetic--seed-3'
    """
    given = _given(overrides)
    rest = {
        key: value
        for key, value in given.items()
        if _group(key) not in (*_OF_PICTURES, *_ELSEWHERE) and key not in _FIRST
    }
    model, include = choices.get("model"), given.get("layers.include")
    if name := given.get("model.name"):
        model = f"{given['model']}-{name}" if "model" in given else name
    if include and "layers" in given:  # a preset's other keys still count
        rest["layers"] = given["layers"]
    first = [model, include or _layers(given, choices), choices.get("dataset")]
    if not all(first):  # `render` has an archive only
        first = [given.get("archive", "archive")]
    return _folder([*map(str, first), *(f"{key}={value}" for key, value in sorted(rest.items()))])


def job_name(overrides: Sequence[str], choices: Mapping[str, str | None]) -> str:
    """Return the folder name of a job: its archive's, its shard, and how it draws.

    >>> job_name(["dataset=synthetic", "shard.index=3", "shard.count=8"],
    ...          {"model": "tiny", "dataset": "synthetic", "layers": "tiny"})
    'tiny--tiny--synthetic--shard-3of8'
    """
    given = _given(overrides)
    parts = [archive_name(overrides, choices)]
    if "shard.index" in given:
        parts.append(f"shard={given['shard.index']}of{given.get('shard.count', '?')}")
    drawing = {key: value for key, value in given.items() if _group(key) in _OF_PICTURES}
    parts += [f"{key}={value}" for key, value in sorted(drawing.items())]
    return _folder(parts)


def _given(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (word.partition("=") for word in overrides)
    return {
        key.lstrip("+"): texts_of(value)[0] if value[:1] in "'\"" else value
        for key, _, value in pairs
    }


def _group(key: str) -> str:
    return re.split(r"[.@/]", key.lstrip("~"))[0]


def _layers(given: Mapping[str, str], choices: Mapping[str, str | None]) -> str | None:
    preset = next((value for key, value in choices.items() if _group(key) == "layers"), None)
    return given.get("layers") or preset


def _folder(parts: Sequence[str]) -> str:
    """Join parts to a folder name; one that had to be changed ends in a hash of what it stood for.

    >>> _folder(["tiny", "[conv1,conv2]", "flat_folder", "dataset.root=/data/cats"])
    'tiny--conv1+conv2--flat_folder--dataset.root-cats-d2cd83cd'
    >>> _folder(["outputs/one/archive"]), _folder(["outputs/two/archive", "render.format=webp"])
    ('one-40af1548', 'two--render.format-webp-e4c50ebc')
    """
    lists = [parts[0]]  # the rest may be lists, but for `key=[…]`
    lists += [p if "=" in p else p.strip("[]").replace(",", "+") for p in parts[1:]]
    short = [re.sub(r"^[^=]*/|(?<==).*/", "", part.removesuffix("/archive")) for part in lists]
    clean = [re.sub(r"[^A-Za-z0-9._=+-]", "_", part) for part in short]
    while len(_SEPARATOR.join(clean)) > _LONGEST:  # every part keeps both its ends
        longest = max(range(len(clean)), key=lambda i: len(clean[i]))
        if len(clean[longest]) <= 2 * _KEPT + 2:
            break
        clean[longest] = f"{clean[longest][:_KEPT]}..{clean[longest][-_KEPT:]}"
    text = _SEPARATOR.join(clean).replace("=", "-")
    if clean == lists and len(text) <= _LONGEST and text.strip("."):
        return text
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
    return f"{text[:_LONGEST]}-{digest}"
