"""The documentation site's generated reference, and the search for its dead links."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import pipeline
from pipeline.config.plugins import PLUGINS
from tests.conftest import REPOSITORY, Run


def loaded(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    return loaded(".github/docs/generated.py")


def leaves(node: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted keys of a composed configuration; a mapping that is a value is one key."""
    if not isinstance(node, DictConfig) or (path and "_target_" not in node and len(node) == 0):
        yield path
        return
    for key in node:
        if key != "_target_":
            yield from leaves(node._get_node(key), f"{path}.{key}".lstrip("."))


def test_every_key_of_the_main_job_is_documented(generated: ModuleType, run: Run) -> None:
    composed = OmegaConf.create(run("run", "--cfg", "job")[1])
    documented = set(re.findall(r"^\| `([\w.]+)` \|", generated.keys(), flags=re.MULTILINE))
    keys = {*leaves(composed)}
    titles = {key for key in keys if re.fullmatch(r"renderers\.\w+\.titles", key)}
    assert len(keys) > 60
    assert keys - titles <= documented


def test_the_values_and_texts_of_keys(generated: ModuleType) -> None:
    rows = {row.split("|")[1].strip(): row for row in generated.keys().splitlines() if "|" in row}
    assert "| `float32`, `bfloat16`, `float16` | `float32` |" in rows["`storage.dtype`"]
    assert "| integer, `null` | `null` |" in rows["`dataset.limit`"]
    assert "| text | required |" in rows["`model.class_path`"]
    assert "(`cka`, `rsa`, `procrustes`)" in rows["`sweep.similarity`"]  # two lines of a docstring


def test_every_public_name_and_base_class_is_in_the_reference(generated: ModuleType) -> None:
    listed = re.findall(r"^\.\. auto(?:function|class):: (\S+)$", generated.api(), re.MULTILINE)
    bases = {plugin.base for plugin in PLUGINS.values()}
    assert sorted(listed) == sorted({f"pipeline.{name}" for name in pipeline.__all__} | bases)


def test_every_command_and_option_is_in_the_reference(generated: ModuleType, run: Run) -> None:
    sections = re.split(r"^## ", generated.commands(), flags=re.MULTILINE)[1:]
    listed = re.findall(r"^    (\w+)\b", run("--help")[1], flags=re.MULTILINE)
    assert [section.splitlines()[0] for section in sections] == listed
    export = next(section for section in sections if section.startswith("export"))
    assert {"--to", "--layers", "--pool", "--rdm"} <= {*re.findall(r"^\| `(--\w+)", export, re.M)}


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html#here">1</a><a href="#top">2</a><img src="x.png">'
        '<a href="b.html#gone">3</a><a href="c.html">4</a><a href="https://example.org/x">5</a>'
    )
    (tmp_path / "b.html").write_text('<p id="here"><a href="a.html?q=1">6</a></p>')
    dead = loaded(".ci/dead_links.py").dead_links(tmp_path)
    assert dead == ["a.html: b.html#gone", "a.html: c.html", "a.html: x.png"]
