"""Overrides in the form that Hydra accepts, and their composition."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import ConfigError, suggestion
from pipeline.config.config_docs import choices, conf_folder

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

_FOLDER_FLAGS = ("--config-dir", "-cd")


def given_folders(words: Sequence[str]) -> list[Path]:
    """Return the configuration folders that a command line adds.

    >>> given_folders(["-cd", "a", "--config-dir=b", "hydra.searchpath=[file://c,pkg://d]"])
    [PosixPath('a'), PosixPath('b'), PosixPath('c')]
    """
    from pipeline.cli.quoting import texts_of  # with Hydra: not for help
    from pipeline.common.paths import local_path

    folders: list[str] = []
    for number, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in _FOLDER_FLAGS:
            folders += [value] if equals else words[number + 1 : number + 2]
        elif flag.lstrip("+") == "hydra.searchpath":
            if re.search(r"\b(?!file:|pkg:|structured:)\w+://", value):
                raise ConfigError(f"{word}: use file://FOLDER or pkg://PACKAGE")
            folders += [text[7:] for text in texts_of(value) if text.startswith("file://")]
    return [local_path(folder) for folder in folders]


def choices_in(group: str, folders: Sequence[Path]) -> list[str]:
    """Return the names of a group's configurations, with those in the user's folders."""
    added = [
        str(path.relative_to(folder / group).with_suffix(""))
        for folder in folders
        for path in (folder / group).rglob("*.yaml")
    ]
    return [*choices(group), *added]


GROUPS = ("model", "layers", "dataset", "loader", "reduction", "storage", "shard", "renderers",
           "experiment", "launch", "sweep")  # fmt: skip
_NEEDED = ("model", "layers", "dataset")
TAKE_A_VALUE = (*_FOLDER_FLAGS, "--cfg", "-c", "--package", "-p", "--info", "-i",
                "--config-path", "-cp", "--config-name", "-cn")  # fmt: skip
_MAKE_A_SWEEP = ("sweep=", "+sweep=", "hydra.mode=")


def as_meant(words: Sequence[str], root: str = "run", *, sweep: bool = False) -> list[str]:
    """Return overrides in the form that Hydra accepts.

    Quote values where needed (see `quoted`). Expand `~/`, which shells leave inside a word. Remove
    the `+` before packaged groups. Replace a group's `null` by its empty choice. Apply
    `layers.types` without other layer options to the whole model.

    >>> as_meant(["~renderers.pca", "dataset.root=a (1)", "+experiment=mine", "reduction=null"])
    ['~renderers.pca', "dataset.root='a (1)'", 'experiment=mine', 'reduction=none']
    """
    from pipeline.cli.quoting import quoted

    for word in words:
        if match := re.match(r"\+*hydra\.(launcher|sweeper|run|sweep)=([^{].*)", word):
            key = f"hydra.{match[1]}.dir" if match[1] in ("run", "sweep") else f"hydra/{match[1]}"
            raise ConfigError(f"{word}: no such key; use {key}={match[2]}")
    words = [re.sub(rf"^\+(?=({'|'.join(GROUPS)})=)", "", word) for word in words]
    words = one_list([override for word in words for override in _chosen(word)], "dataset.shards")
    values = {key.lstrip("+"): value for key, _, value in (w.partition("=") for w in words)}
    chosen = values.keys() & {"layers", "layers.include", "experiment"}
    if values.get("layers.types", "null") not in ("null", "[]") and not chosen:
        words.append("layers.include=['*']")  # not only the model's preset
    return [quoted(word, root, sweep=sweep) for word in words]


def is_sweep(words: Sequence[str]) -> bool:
    """Return whether a command line starts a sweep."""
    return any(w in ("-m", "--multirun") or w.startswith(_MAKE_A_SWEEP) for w in words)


def one_list(words: list[str], key: str) -> list[str]:
    """Merge repeated values of a key, which a shell makes of `dataset.shards=data/{0..9}.tar`.

    >>> one_list(["shards=0.tar", "shards=1.tar", "seed=1"], "shards")
    ['seed=1', 'shards=[0.tar,1.tar]']
    """
    from pipeline.cli.quoting import listed

    values = [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]
    if len(values) < 2:
        return words
    items = [item for value in values for item in listed(value)]
    other_words = [word for word in words if not word.startswith(f"{key}=")]
    return [*other_words, f"{key}=[{','.join(items)}]"]


def _chosen(word: str) -> list[str]:
    group, _, value = word.partition("=")
    if group not in GROUPS or value != "null":
        return [word]
    if group in _NEEDED:
        raise ConfigError(f"{group}=null: is required; {suggestion('', choices(group))}")
    return {"reduction": ["reduction=none"], "renderers": ["renderers=[]"]}.get(group, [])


@contextmanager
def composing(root: str, folder: str | None) -> Iterator[Hydra]:
    """Set up Hydra to compose `root`, also from the user's `folder`; convert its errors."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    from pipeline.config import hydra_schema
    from pipeline.config.error_messages import explain, is_of_composition

    version.setbase("1.3")
    hydra_schema.register(root)
    searched = create_config_search_path(str(conf_folder()))
    if folder:
        searched.prepend("command line", f"file://{folder}", SearchPathQuery(provider="schema"))
    hydra = Hydra.create_main_hydra2("featuremaps", searched)
    try:
        yield hydra
    except Exception as error:
        if not is_of_composition(error):
            raise
        raise explain(error, hydra.config_loader.get_group_options) from error
    finally:
        GlobalHydra.instance().clear()
