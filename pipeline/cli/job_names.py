"""Names of the jobs and archives of a sweep, built from the keys that vary.

    featuremaps run -m model.weights=ckpt/epoch0.pt,ckpt/epoch1.pt seed=0
    <sweep>/weights=epoch0                 <sweep>/archives/weights=epoch0

Jobs that differ only in rendering or in the shard share an archive. Names need no shell quotes.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix

from pipeline.cli.quoting import texts_of

_NO_ARCHIVE_KEY = ("render", "renderers", "shard", "archive", "sweep")
"""Groups that do not affect the content of an archive."""
_VALUE_ALONE = ("model", "model.name", "archive")
"""Keys omitted from names: `vgg11`, not `model=vgg11`."""
_RESERVED = ("archives", "catalogue", "health", "similarity")
"""Names of the other folders of a sweep."""
_LONGEST = 80
Values = Mapping[str, str]
_SEPARATOR = "--"
_FILE_ENDING = re.compile(r"\.(pt|pth|ckpt|safetensors|bin|csv|tar|h5|zip|json|ya?ml|py)$", re.I)


@dataclass(frozen=True)
class JobNames:
    """One job of a sweep."""

    overrides: tuple[str, ...]
    job: str  # name of its folder
    archive: str  # name of its archive


def name_jobs(
    jobs: Sequence[Sequence[str]],
    choices: Mapping[str, str | None],
    previous: Sequence[JobNames] = (),
) -> list[JobNames]:
    """Return the names of the jobs of a sweep, in order, from the overrides of each.

    A job that is identical to one of the `previous` sweeps in the folder keeps its name; a
    different job of that name gets a hash appended.

    >>> names = name_jobs([["model=a", "seed=0"], ["model=b", "seed=0"]], {})
    >>> [name.job for name in names]
    ['a', 'b']
    """
    given = [_values(job) for job in jobs]
    default = (given[0].get("model.name") if given else "") or choices.get("model") or "archive"

    def names_by(part: Callable[[Values], Values], name: Callable[[JobNames], str]) -> list[str]:
        values = [part(job) for job in given]
        known = {_identity(part(_values(names.overrides))): name(names) for names in previous}
        return _distinct(_described(values, default), map(_identity, values), known)

    job_names, archives = (
        names_by(dict, lambda n: n.job),
        names_by(_extracting, lambda n: n.archive),
    )
    return [JobNames(tuple(j), *names) for j, *names in zip(jobs, job_names, archives, strict=True)]


def _values(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (word.partition("=") for word in overrides)
    return {
        key.lstrip("+"): texts_of(value)[0] if value[:1] in "'\"" else value
        for key, _, value in pairs
        if key.lstrip("+") != "launch"  # the same job, wherever it runs
    }


def _extracting(values: Mapping[str, str]) -> dict[str, str]:
    groups = {key: re.split(r"[.@/]", key.lstrip("~"))[0] for key in values}
    return {key: value for key, value in values.items() if groups[key] not in _NO_ARCHIVE_KEY}


def _identity(values: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(values.items()))


def _described(jobs: Sequence[Mapping[str, str]], default: str) -> list[str]:
    """Return a name per job from the keys that vary, or `default` if none varies."""
    keys = [key for key in dict.fromkeys(key for job in jobs for key in job)
            if len({job.get(key) for job in jobs}) > 1]  # fmt: skip
    keys.sort(key=lambda key: key not in _VALUE_ALONE)  # the model first
    labels = _labels(keys)
    texts = {key: _short_values({job.get(key, "") for job in jobs}) for key in keys}
    names = []
    for job in jobs:
        parts = []
        for key in keys:
            text = texts[key][job.get(key, "")]
            if key == "shard.index":
                parts.append(f"shard={text}of{job.get('shard.count', '?')}")
            else:
                parts.append(text if key in _VALUE_ALONE else f"{labels[key]}={text}")
        names.append(_folder_name(parts or [default]))
    return names


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest unique dotted suffix of each key.

    >>> _labels(["model.weights", "renderers.grid.colormap", "renderers.pca.colormap"])
    {'model.weights': 'weights', 'renderers.grid.colormap': 'grid.colormap', \
'renderers.pca.colormap': 'pca.colormap'}
    """
    labels = {}
    for key in keys:
        parts = key.split(".")
        tails = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
        labels[key] = next(
            (tail for tail in tails
             if not any(o == tail or o.endswith(f".{tail}") for o in keys if o != key)),
            key,
        )  # fmt: skip
    return labels


def _short_values(values: set[str]) -> dict[str, str]:
    """Return the shortest unique text for each value of a key.

    >>> sorted(_short_values({"a/ckpt/last.pt", "b/ckpt/last.pt"}).values())
    ['a', 'b']
    >>> sorted(_short_values({"ckpt/epoch0.pt", "ckpt/epoch1.pt", "null"}).values())
    ['epoch0', 'epoch1', 'null']
    """
    paths = {value: value.rstrip("/").split("/") for value in values}
    parts = [path for path in paths.values() if len(path) > 1]
    both = (parts, [path[::-1] for path in parts])
    start, stop = (len(commonprefix(lists)) for lists in both)  # noqa: RUF071 - of lists of names
    stop = min([stop, *(len(path) - start - 1 for path in parts)])

    def differing(value: str) -> str:
        path = paths[value]
        return "-".join(path[start : len(path) - stop]) if len(path) > 1 else value

    forms = (
        lambda value: _FILE_ENDING.sub("", paths[value][-1]),
        lambda value: paths[value][-1],
        lambda value: _FILE_ENDING.sub("", differing(value)),
        lambda value: value,
    )
    for form in forms:
        short = {
            value: value.strip("[]{}").replace(",", "+") if value[:1] in ("[", "{") else form(value)
            for value in values
        }
        if len({_clean(text).casefold() for text in short.values()}) == len(short):
            break
    return short


def _clean(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text)


def _folder_name(parts: Sequence[str]) -> str:
    """Join parts to a folder name of at most 80 characters, shortening the longest in the middle.

    >>> _folder_name(["tiny", "root=" + "x" * 99])
    'tiny--root=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'
    """
    clean = [_clean(part) for part in parts]
    while (over := len(_SEPARATOR.join(clean)) - _LONGEST) > 0:
        longest = max(clean, key=len)
        keep = max(len(longest) - over - 2, 4)
        if keep + 2 >= len(longest):
            break
        clean[clean.index(longest)] = f"{longest[: keep // 2]}..{longest[-(keep - keep // 2) :]}"
    name = _SEPARATOR.join(clean)[:_LONGEST]
    return f"_{name[1:]}" if name[:1] in ("", ".", "-", "~") else name


def _distinct(
    names: Sequence[str],
    identities: Iterable[tuple[tuple[str, str], ...]],
    previous: Mapping[tuple[tuple[str, str], ...], str],
) -> list[str]:
    """Return one name per identity, unique ignoring case; clashing names get a hash appended."""
    identities = list(identities)
    chosen = {
        identity: previous.get(identity, name)
        for identity, name in zip(identities, names, strict=True)
    }
    count = Counter(name.casefold() for name in chosen.values())
    reserved = {*_RESERVED, *(n.casefold() for key, n in previous.items() if key not in chosen)}
    for identity, name in chosen.items():
        clash = count[name.casefold()] > 1 or name.casefold() in reserved
        if clash and identity not in previous:
            digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:8]
            chosen[identity] = f"{name[: _LONGEST - 9]}-{digest}"
    return [chosen[identity] for identity in identities]
