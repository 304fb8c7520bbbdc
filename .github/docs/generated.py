"""Parts of the reference that are generated: configuration keys, commands, the archive format."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import inspect
import re
import types
import typing
from collections.abc import Collection, Iterator
from typing import Any

import pipeline
from pipeline.archive.format import schema
from pipeline.cli.help import describe_overrides
from pipeline.cli.main import parser
from pipeline.cli.override_commands import COMMANDS
from pipeline.config.config_docs import attribute_texts, choices
from pipeline.config.plugins import PLUGINS, SETTINGS, SINGLE, kinds, locate

_SECTIONS = {
    "extraction": "Extraction", "capture": "Layers and hooks", "models": "Models",
    "datasets": "Datasets", "archive": "Archives", "training": "Training", "rendering": "Rendering",
    "renderers": "Renderers", "explorer": "Explorer", "similarity": "Similarity",
    "common": "Errors",
}  # fmt: skip


def api() -> str:
    """Return autodoc directives for every public name, by package; functions come first."""
    public = {f"pipeline.{name}": getattr(pipeline, name) for name in pipeline.__all__}
    public |= {path: locate(path) for path in PLUGINS.values()}
    sections = []
    for package, title in _SECTIONS.items():
        names = [n for n, value in public.items() if value.__module__.split(".")[1] == package]
        names.sort(key=lambda name: (inspect.isclass(public[name]), name))
        sections += [
            f"## {title}",
            "```{eval-rst}",
            *(_autodoc(n, public[n]) for n in names),
            "```",
        ]
    return "\n\n".join(sections)


def _autodoc(name: str, value: Any) -> str:
    if not inspect.isclass(value):
        return f".. autofunction:: {name}"
    # The keys of a configuration are in its docstring; its methods are for the package.
    configuration = hasattr(value, "__pydantic_fields__") and not inspect.isabstract(value)
    members = "" if configuration else "\n   :members:"
    return f".. autoclass:: {name}{members}"


def keys() -> str:
    """Return a section per group and per kind of plug-in, with a table of its keys."""
    sections = ["## Top level", _table("", locate(SETTINGS), {*PLUGINS, *SINGLE})]
    for group, path in PLUGINS.items():
        base = locate(path)
        shared = {field.name for field in dataclasses.fields(base)}
        named = ", ".join(f"`{choice}`" for choice in choices(group))
        chosen = f"`renderers=[{named.replace('`', '')}]`" if group == "renderers" else named
        sections += [f"## {group}", f"Choices: {chosen}.", _table(group, base)]
        for kind, owner in sorted(kinds(group).items()):
            if kind not in ("sequence", "thumbnails"):  # in Python only
                node = f"{group}.{kind}" if group == "renderers" else group
                sections += [f"### {kind}", _summary(owner), _table(node, owner, shared)]
    for group, path in SINGLE.items():
        sections += [f"## {group}", _summary(locate(path)), _table(group, locate(path))]
    return "\n\n".join(section for section in sections if section)


def commands() -> str:
    """Return a section per command, with its usage and arguments."""
    sections = []
    (choice,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    for summary, (name, command) in zip(
        choice._choices_actions, choice.choices.items(), strict=True
    ):
        text = summary.help or ""
        sections += [f"## {name}", f"{text[:1].upper()}{text[1:]}."]
        if name in COMMANDS:
            usage, example, *_, flags = describe_overrides(name).split("\n\n")
            sections.append(f"```bash\n{usage}\n{example}\n\n{flags}```")
            continue
        usage = command.format_usage().removeprefix("usage: ").replace("\n       ", "\n")
        sections.append(f"```text\n{usage}```")
        rows = [_argument(action) for action in command._actions if action.dest != "help"]
        sections.append("| argument | |\n|---|---|\n" + "\n".join(rows))
    return "\n\n".join(sections)


def example() -> str:
    """Return links to the live example, which `.ci/site` makes beside the pages."""
    return (
        'A live example: the <a href="example/gallery/index.html">gallery of ten photos</a> and '
        '<a href="example/photos.h5" download>their archive</a> in one HDF5 file, which '
        "[myHDF5](https://myhdf5.hdfgroup.org) opens in the browser."
    )


def specification() -> str:
    """Return the specification of the archive format, as its module states it."""
    return f"```text\n{inspect.getdoc(schema)}\n```"


def _argument(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    value = action.metavar or action.dest.upper()
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    takes = f" {value}" if action.option_strings and action.nargs != 0 else ""
    text = action.help or (f"`{value}`" if action.choices else "")
    return f"| `{names}{takes}` | {_cell(text)} |"


def _summary(owner: type) -> str:
    """Return the docstring before its sections."""
    return (inspect.getdoc(owner) or "").partition("\n\nAttributes:")[0]


def _table(prefix: str, owner: type, omitted: Collection[str] = ()) -> str:
    rows = "\n".join(_rows(prefix, owner, omitted))
    return f"| key | |\n|---|---|\n{rows}" if rows else ""


def _rows(prefix: str, owner: type, omitted: Collection[str] = ()) -> Iterator[str]:
    hints, texts = typing.get_type_hints(owner), attribute_texts(owner)
    for field in dataclasses.fields(owner):
        key, hint = f"{prefix}.{field.name}".lstrip("."), hints[field.name]
        if field.name in omitted:
            continue
        if dataclasses.is_dataclass(hint):
            yield from _rows(key, typing.cast(type, hint))
        else:
            text = _cell(texts.get(field.name, ""))
            yield f"| `{key}` | {_values(hint)}; {_default(field)}<br>{text} |"


def _values(hint: Any) -> str:
    """Return what a key takes."""
    names = {
        str: "text", bool: "`true`, `false`", int: "integer", float: "number",
        types.NoneType: "`null`", tuple: "list",
    }  # fmt: skip
    origin = typing.get_origin(hint) or hint
    if origin in (typing.Union, types.UnionType):
        return ", ".join(_values(one) for one in typing.get_args(hint))
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(hint))
    if issubclass(origin, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in origin)
    return names.get(origin, "mapping")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"default `{field.default_factory()}`"
    if field.default is dataclasses.MISSING:
        return "required"
    return f"default `{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    """Return a default value as it is typed."""
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(map(_yaml, value)) + "]"
    if isinstance(value, enum.Enum):
        return str(value.value)
    words = {None: "null", True: "true", False: "false", "": '""'}
    return words[value] if isinstance(value, bool) or value in (None, "") else str(value)


def _cell(text: str) -> str:
    """Return a text for a table, with YAML's words for Python's."""
    for python, yaml in (("None", "`null`"), ("True", "`true`"), ("False", "`false`")):
        text = re.sub(rf"\b{python}\b(?!`)", yaml, text)
    return text.replace("|", r"\|")
