"""Quoting of values for Hydra's grammar, so that paths and texts keep their meaning.

Hydra's grammar rejects non-ASCII letters, brackets, quotes and equals signs outside quotes, and
parses `true` and `1e3` as other types than text. Users quote for their shell only.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException

from pipeline.common.errors import ConfigError
from pipeline.common.natural_order import natural_order
from pipeline.common.places import place, refuse_secrets, refuse_url
from pipeline.config.keys import Takes, takes

_WORD = re.compile(r"(\+{0,2}[^=+~\s]+)=(.*)", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_/*.][A-Za-z0-9_./*-]*")
_RESERVED = re.compile(r"null|true|false|inf|nan|[.\d].*", re.IGNORECASE)
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_ESCAPE = re.compile(r"\\[\\()\[\]{}:=, \t]")
_NEW = ("archive", "hydra.run.dir", "hydra.sweep.dir")
"""Paths that need not exist yet."""
GLOB = "glob:"
"""Prefix of sweep values that expand to all matching paths."""
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def quoted(word: str, root: str, *, sweep: bool) -> str:
    r"""Return an override in Hydra's grammar; in a sweep, commas separate values.

    >>> quoted("model.weights=epoch=9.ckpt", "run", sweep=False)
    "model.weights='epoch=9.ckpt'"
    >>> quoted("render.samples=[it's.jpg,b.jpg]", "run", sweep=False)
    "render.samples=['it\\'s.jpg',b.jpg]"
    """
    match = _WORD.fullmatch(word)
    if match is None:
        return word
    key, value = match[1], match[2]
    if value == "None" and not _exists(value):
        raise ConfigError(f"{word}: use {key}=null, or quote the text: \"{key}='None'\"")
    if value.startswith(GLOB) and not sweep:
        raise ConfigError(f"{word}: glob: expands to several values; add -m to sweep over them")
    if key.lstrip("+").startswith("storage_options"):
        refuse_secrets(f"{key} {value}")
    kind = takes(root, key.lstrip("+"))
    if kind == "other":
        return f"{key}={_other(value, sweep=sweep)}"
    if key.lstrip("+") in _NEW:
        if key.endswith(".dir") and not value:  # e.g. an unset variable
            raise ConfigError(f"{word}: no folder is given; use {key}=. for the current folder")
        place(value) if key.lstrip("+") == "archive" else refuse_url(value)
    if sweep:
        pieces = split(value)
        parts = _paths(pieces) if kind in ("text", "text or null") else pieces
        return f"{key}={','.join(_value(part, kind, word, sweep=True) for part in parts)}"
    if kind != "texts by name" and key.lstrip("+") not in _NEW and not _exists(value):
        values = split(value)
        if kind == "texts" and values[1:]:
            raise ConfigError(
                f"{word}: use {key}=[{value}] for a list, or add -m to sweep over the values"
            )
        if values[1:] and all(values):
            once = shlex.quote(f"{key}={_in_quotes(value)}")
            raise ConfigError(
                f"{word}: several values need a sweep; add -m, or quote a value with commas: {once}"
            )
    return f"{key}={_value(value, kind, word)}"


def texts_of(value: str) -> list[str]:
    r"""Return a value, or those of a list, without Hydra's quotes.

    >>> texts_of("['it\\'s',b]"), texts_of("plain")
    (["it's", 'b'], ['plain'])
    """
    inside = _inside(value, "[")
    parsed = [(part, _parsed(part)) for part in ([value] if inside is None else split(inside))]
    return [value.text if isinstance(value, QuotedString) else part for part, value in parsed]


def _value(value: str, kind: Takes, word: str, *, sweep: bool = False) -> str:
    inside = _inside(value, "[") if kind == "texts" else None
    if inside is not None:
        return f"[{','.join(quoted_text(part) for part in split(inside))}]"
    if kind == "texts" and value.startswith("[") and "]" not in value:
        raise ConfigError(f"{word}: missing closing bracket; add ]")
    inside = _inside(value, "{") if kind == "texts by name" else None
    if inside is not None:
        return _mapping(inside, quoted_text)
    null = kind in ("text or null", "texts") and value.lower() == "null"
    return value if null else quoted_text(value, sweep=sweep, strip=False)


def quoted_text(text: str, *, sweep: bool = False, strip: bool = True) -> str:
    """Return a text as one value of Hydra's grammar, quoted if necessary."""
    if strip and not _exists(text):
        text = text.strip()
    if text.startswith("~/") or text == "~":
        text = str(Path.home()) + text[1:]
    if not text or (_PLAIN.fullmatch(text) and not _RESERVED.fullmatch(text)):
        return text
    parsed = _parsed(text)
    if not _exists(text):
        escaped = isinstance(parsed, str) and _ESCAPE.search(text) and not text.startswith("re:")
        swept = isinstance(parsed, Sweep) and not getattr(parsed, "simple_form", False)
        if escaped or isinstance(parsed, QuotedString) or (sweep and swept):
            return text
        if "${" in text:
            return text if parsed is not None else _in_quotes(text)
    elif "${" in text:  # a path, not an interpolation
        return _in_quotes(re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text))
    return text if isinstance(parsed, str) and parsed == text else _in_quotes(text)


def _other(value: str, *, sweep: bool) -> str:
    """Return the value of a key that is not only text, quoting what Hydra cannot parse."""
    if not value or _PLAIN.fullmatch(value):
        return value
    value = re.sub(r"(?:^|(?<=[,\[]))~(?=/)", lambda _: str(Path.home()), value)
    if (inside := _inside(value, "{")) is not None:
        rebuilt = _mapping(inside, lambda text: _other(text.strip(), sweep=False))
        return rebuilt if _valid(rebuilt) else _in_quotes(value)
    if _valid(value):
        return value
    if (inside := _inside(value, "[")) is not None:
        rebuilt = f"[{','.join(_other(part.strip(), sweep=False) for part in split(inside))}]"
        return rebuilt if _valid(rebuilt) else _in_quotes(value)
    parts = split(value) if sweep else [value]
    return ",".join(_other(part, sweep=False) for part in parts) if parts[1:] else _in_quotes(value)


def _mapping(inside: str, convert: Callable[[str], str]) -> str:
    """Return a dictionary in Hydra's grammar, which allows no quotes around keys.

    A key ends at the first colon before a space, or else at the first colon: `relu:0: first`.
    """
    pairs = []
    for part in split(inside):
        colons = [index for index, _, char in _depths(part, {}) if char == ":"]
        spaced = [index for index in colons if part[index + 1 : index + 2].isspace()]
        if not colons:
            return f"{{{inside}}}"  # Hydra reports the error
        end = (spaced or colons)[0]
        key = texts_of(part[:end].strip())[0]
        if key.startswith("re:") or not _ESCAPE.search(key):
            key = re.sub(r"[\\()\[\]{}:=,\s]", r"\\\g<0>", key)
        pairs.append(f"{key}:{convert(part[end + 1 :])}")
    return f"{{{','.join(pairs)}}}"


def parsed_override(word: str) -> Override | None:
    """Return an override, or None for invalid grammar, which Hydra reports later."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _valid(value: str) -> bool:
    return parsed_override(f"key={value}") is not None


def _parsed(value: str) -> Any:
    """Return the value that Hydra parses; None for null and for invalid grammar."""
    override = parsed_override(f"key={value}")
    return None if override is None else override._value


def _in_quotes(text: str) -> str:
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def matches_of(text: str) -> list[str]:
    """Return the paths that match `glob:PATTERN`, in natural order."""
    pattern = re.sub(r"^~(?=/)", lambda _: str(Path.home()), text.removeprefix(GLOB))
    return sorted(glob(pattern, recursive=True), key=natural_order)  # noqa: PTH207 - paths as typed


def _exists(text: str) -> bool:
    if text.startswith(GLOB):
        return bool(matches_of(text))
    return os.path.lexists(os.path.expanduser(text))  # noqa: PTH111 - raises nothing for ~nobody


def _inside(value: str, opening: str) -> str | None:
    """Return the text inside brackets that enclose a whole value, or None."""
    text = value.strip()
    if not (text.startswith(opening) and text.endswith(_CLOSING[opening])):
        return None
    for brackets in (_CLOSING, {opening: _CLOSING[opening]}):
        ends = [index for index, depth, _ in _depths(text, brackets) if depth == 0]
        if ends[:1] == [len(text) - 1]:
            return text[1:-1]
    return None


def listed(value: str) -> list[str]:
    """Return the items of a list, or comma-separated values.

    >>> listed("[a,b]"), listed("a,b")
    (['a', 'b'], ['a', 'b'])
    """
    inside = _inside(value, "[")
    return split(value if inside is None else inside)


def split(value: str) -> list[str]:
    """Split at commas outside brackets and quotes; at all commas if brackets do not match.

    >>> split("a[0,1],'b,c',it's")
    ['a[0,1]', "'b,c'", "it's"]
    """
    steps = list(_depths(value, _CLOSING))
    matched = not steps or steps[-1][1] == 0
    edges = [index for index, depth, char in steps if char == "," and (depth == 0 or not matched)]
    return [value[a + 1 : b] for a, b in zip([-1, *edges], [*edges, len(value)], strict=True)]


def _depths(text: str, brackets: Mapping[str, str]) -> Iterator[tuple[int, int, str]]:
    """Yield index, bracket depth and character; quoted and escaped ones are empty."""
    index, before, expected = 0, ",", ""
    while index < len(text):
        char, stop = text[index], index + 1
        match = _QUOTED.match(text, index) if before in ",[{:(" else None
        if match and text[match.end() : match.end() + 20].lstrip()[:1] in ("", *",]}):"):
            char, stop = "", match.end()
        elif _ESCAPE.match(text, index):
            char, stop = "", index + 2
        elif char in brackets:
            expected += brackets[char]
        elif char == expected[-1:]:
            expected = expected[:-1]
        yield stop - 1, len(expected), char
        before = char if not char.isspace() else before
        index = stop


def _paths(pieces: Sequence[str]) -> list[str]:
    """Join adjacent pieces of a sweep that form an existing path with commas.

    >>> _paths(["a", " b"])
    ['a', 'b']
    """
    values, rest = [], [*pieces]
    while rest:
        candidates = [",".join(rest[:stop]) for stop in range(1, len(rest) + 1)]
        path = next(filter(_exists, candidates), None)
        values.append(path or rest[0].strip())
        del rest[: candidates.index(path) + 1 if path else 1]
    return values
