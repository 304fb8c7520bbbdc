"""Validation errors of pydantic as one line."""

import dataclasses
import typing
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import ValidationError

from pipeline.common.errors import one_line, suggestion

MAPPING = "a mapping (key: value)"
_TYPES = {
    "int": "an integer", "float": "a number", "bool": "true or false", "string": "text",
    "tuple": "a list", "dict": MAPPING, "mapping": MAPPING, "dataclass": MAPPING,
}  # fmt: skip
_EXAMPLES = {
    "ModelSource": "a ModelSource: TorchvisionModel(name=…), FromModule(module=…), …",
    "ImageDataset": "an ImageDataset: ImageFolder(root=…), FromSequence(items=…), …",
    "LayerSelector": "a LayerSelector: LayerSelector(include=…)",
}
_WRONG_ARGUMENTS = ("unexpected_keyword_argument", "unexpected_positional_argument")


def explained(error: ValidationError, kind: type, path: str) -> str:
    """Return one of the errors as one line: key, fact, remedy; wrong arguments come first."""
    errors = error.errors(include_url=False)
    first = min(errors, key=lambda item: item["type"] not in _WRONG_ARGUMENTS)
    location, value, context = first["loc"], first["input"], first.get("ctx", {})
    where = path
    if first["type"] != "unexpected_keyword_argument":
        location = _without_branches(kind, location)
    for step in location:
        where = f"{where}[{step}]" if isinstance(step, int) else joined(where, str(step))
    match first["type"]:
        case "unexpected_keyword_argument":
            hint = suggestion(str(location[-1]), _keys_at(kind, location[:-1]), every=True)
            return f"{where}: no such key; {hint}"
        case "unexpected_positional_argument":
            return f"takes keyword arguments only, got {one_line(repr(value), limit=80)}"
        case "missing" if isinstance(location[-1], int):
            return f"{where.rpartition('[')[0]}: needs more values, got {one_line(value)}"
        case "missing":
            return required(where)
        case "too_long":
            return f"{where}: takes at most {context['max_length']} values, got {one_line(value)}"
        case "literal_error" if type(value) is not int:
            names = choices_of(hints_at(kind, location))
            return f"{where}: unknown value {value!r}; {suggestion(str(value), names)}"
        case "value_error":
            return f"{where}: {context['error']}".removeprefix(": ")
        case "greater_than_equal":
            return f"{where}: must be at least {context['ge']}, got {one_line(value)}"
        case _:
            text = first["msg"].replace("Input should", "must", 1)
            if not path and first["type"] == "dataclass_type":  # of a program
                if isinstance(value, type):
                    return f"{where}: must be an object, not a class: {value.__name__}(…)"
                name = context["class_name"]
                text = f"must be {_EXAMPLES.get(name, f'a {name}')}"
            elif plain := _TYPES.get(first["type"].partition("_")[0]):
                text = f"must be {plain}"
            return f"{where}: {text[0].lower()}{text[1:]}, got {one_line(repr(value), limit=80)}"


def _without_branches(kind: type, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return a location without pydantic's names of union branches."""
    keys: tuple[int | str, ...] = ()
    for step in location:
        if isinstance(step, int) or step in _keys_at(kind, keys) or dict in hints_at(kind, keys):
            keys = (*keys, step)
    return keys


def required(key: str) -> str:
    """Return the message for a missing key."""
    return f"{key}: is required; set it, e.g. {key}=…"


def joined(path: str, key: str) -> str:
    """Return the path of a key."""
    return f"{path}.{key}" if path else key


def types_in(hint: Any) -> set[Any]:
    """Return the classes and literals in a type hint."""
    if typing.get_origin(hint) is Literal:
        return {hint}
    parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
    classes = {item for item in (hint, typing.get_origin(hint)) if isinstance(item, type)}
    return classes.union(*(types_in(part) for part in parts))


def hints_at(kind: type, location: tuple[int | str, ...]) -> set[Any]:
    """Return the classes and literals allowed at a location within an object of `kind`."""
    classes = {kind}
    for step in (step for step in location if isinstance(step, str)):
        for owner in [item for item in classes if dataclasses.is_dataclass(item)]:
            if step in (hints := typing.get_type_hints(owner)):
                classes = types_in(hints[step])
    return classes


def _keys_at(kind: type, location: tuple[int | str, ...]) -> list[str]:
    owners = (part for part in hints_at(kind, location) if dataclasses.is_dataclass(part))
    return [item.name for owner in owners for item in dataclasses.fields(owner)]


def choices_of(hints: Iterable[Any]) -> list[str]:
    """Return the values of the literals and booleans among type hints."""
    values: list[object] = []
    for hint in hints:
        if typing.get_origin(hint) is Literal:
            values += typing.get_args(hint)
        elif hint is bool:
            values += ["true", "false"]
    return [str(value) for value in values]
