"""Documentation of the configuration: packaged choices, and docstrings of keys."""

import inspect
import re
import textwrap
from pathlib import Path

from pipeline.config.plugins import PLUGINS, SETTINGS, SINGLE, kinds, locate

BY_PROGRAMS = {"sequence", "thumbnails"}
"""Kinds that are only available in Python."""


def conf_folder() -> Path:
    """Return the folder of the packaged configuration, in a wheel or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def choices(group: str) -> list[str]:
    """Return the packaged configurations of a group and, except for models, its kinds."""
    names = {path.stem for path in (conf_folder() / group).glob("*.yaml")}
    if group in PLUGINS and group != "model":
        names |= kinds(group).keys()
    return sorted(names - BY_PROGRAMS)


def attribute_texts(owner: type) -> dict[str, str]:
    """Return attribute → text on one line, from the docstrings of a class and its bases.

    Texts are in the words of YAML: null instead of None.
    """
    texts: dict[str, str] = {}
    for kind in reversed(owner.__mro__):
        text = inspect.cleandoc(vars(kind).get("__doc__") or "")
        section = re.search(r"Attributes:\n(.*)", text, re.DOTALL)
        for entry in re.split(r"\n(?=\S)", textwrap.dedent(section[1])) if section else ():
            names, _, text = entry.partition(":")
            text = re.sub(r"\bNone\b", "null", " ".join(text.split()))
            texts |= dict.fromkeys(names.split(", "), text)
    return texts


def text_of(key: str) -> str:
    """Return the docstring of a configuration key on one line; empty if it has none.

    >>> text_of("dataset.limit")
    'number of samples to use, counted from the first.'
    """
    path, _, name = key.rpartition(".")
    group, _, kind = path.partition(".")
    owners = [locate((PLUGINS | SINGLE).get(group, SETTINGS))]
    if group in PLUGINS:
        owners += [kinds(group)[kind]] if kind else kinds(group).values()
    texts = map(attribute_texts, owners)
    return next((text[name] for text in texts if name in text), "")  # none with python -OO
