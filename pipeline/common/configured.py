"""Configuration dataclasses, and the names of their kinds in files.

A configuration dataclass is frozen and keyword-only. Pydantic validates its fields, which are the
keys of the configuration.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.common.errors import ConfigError
from pipeline.common.validation_errors import explained

T = TypeVar("T")


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, Field)
)
def configured(kind: type[T]) -> type[T]:
    """Make a class a configuration dataclass.

    Its constructor raises ConfigError for invalid values.
    """
    # Built eagerly: if two threads build a class at first use, pydantic before 2.13 may see only
    # the fields of its parent.
    config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, arbitrary_types_allowed=True)
    made: Any = dataclass(kind, frozen=True, kw_only=True, config=config)
    validate = made.__init__

    @functools.wraps(validate)
    def init(self: T, *values: object, **named: object) -> None:
        try:
            validate(self, *values, **named)
        except ValidationError as error:
            raise ConfigError(f"{kind.__name__}: {explained(error, kind, '')}") from error

    made.__init__ = init
    return cast(type[T], made)


def _as_tuple(value: object) -> object:
    """Return a tuple of the values; of one for a single value, empty for None."""
    if value is None:
        return ()
    if hasattr(value, "tolist"):  # arrays, tensors and columns of tables
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(value)
    return (value,)


def _no_bool(value: object) -> object:
    if isinstance(value, bool):  # pydantic takes true for 1; a bare `--limit` means true
        raise ValueError(f"must be a number, got {str(value).lower()}")
    return value


_Number = BeforeValidator(_no_bool)
Positive = Annotated[int, Field(ge=1), _Number]
Natural = Annotated[int, Field(ge=0), _Number]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), _Number]
Columns = Annotated[int, Field(ge=1, le=1000), _Number]
TileSize = Annotated[int, Field(ge=1, le=4096), _Number]  # pixels; larger ones fill the memory
Share = Annotated[float, Field(ge=0, le=1), _Number]
Several = BeforeValidator(_as_tuple)
Texts = Annotated[tuple[str, ...], Several]
Channels = Annotated[tuple[Natural, ...], Several]


def type_key_of(kind: type) -> str | None:
    """Return the name of a plug-in class in files, or None for classes without a `type_key`.

    It is the class's own `type_key` or its name in snake case; outside this package, the import
    path.
    """
    if not hasattr(kind, "type_key"):
        return None
    if not kind.__module__.startswith("pipeline."):
        return f"{kind.__module__}.{kind.__qualname__}"
    declared: str | None = vars(kind).get("type_key")
    return declared or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()


def to_dict(value: Any) -> Any:
    """Return configuration objects as JSON values, with their kind under `_target_`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = type_key_of(type(value))
        values = {
            item.name: to_dict(getattr(value, item.name))
            if item.metadata.get("recorded", True)
            else type(getattr(value, item.name)).__name__  # an object that a program passed in
            for item in dataclasses.fields(value)
            if item.metadata.get("recorded", True) is not None
        }
        return values if name is None else {"_target_": name, **values}
    if isinstance(value, Mapping):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)
