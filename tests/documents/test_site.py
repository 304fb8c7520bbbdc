"""The documentation site's generated reference, and the search for its dead links."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from playwright.sync_api import Browser, expect

import pipeline
from pipeline.config.plugins import PLUGINS
from tests.conftest import REPOSITORY, Run
from tests.helpers.chromium import Watch, needs_chromium
from tests.helpers.file_server import served


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
    assert "| `float32`, `bfloat16`, `float16`; default `float32`<br>" in rows["`storage.dtype`"]
    assert "| integer, `null`; default `null`<br>" in rows["`dataset.limit`"]
    assert "| text; required<br>" in rows["`model.class_path`"]
    assert "(`cka`, `rsa`, `procrustes`)" in rows["`sweep.similarity`"]  # two lines of a docstring


def test_every_public_name_and_base_class_is_in_the_reference(generated: ModuleType) -> None:
    listed = re.findall(r"^\.\. auto(?:function|class):: (\S+)$", generated.api(), re.MULTILINE)
    bases = {*PLUGINS.values()}
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built pages, without the live example; warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "sphinx", "-q", "-W", "-d", str(folder / "trees"), ".github/docs"]
    built = subprocess.run(
        [sys.executable, *command, str(folder / "html")], cwd=REPOSITORY,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return folder / "html"


@pytest.mark.slow
def test_pages_have_no_dead_links(site: Path) -> None:
    dead = loaded(".ci/dead_links.py").dead_links(site)
    assert dead == [f"index.html: example/{name}" for name in ("gallery/index.html", "photos.h5")]


@pytest.mark.slow
@needs_chromium
def test_the_site_in_a_browser(site: Path, browser: Browser) -> None:
    with served(site) as (url, _):
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
            context = browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=scheme,
                permissions=["clipboard-read", "clipboard-write"],
            )  # fmt: skip
            page = context.new_page()
            watch = Watch(page, url)
            for name in ("index", "tutorial", "how-to/layers", "reference/keys", "reference/api"):
                page.goto(f"{url}/{name}.html")
                wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
                assert wide <= 0, (name, width)
                broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
                assert page.evaluate(broken) == 0, name
            assert page.locator("html").get_attribute("data-theme") == scheme
            page.goto(f"{url}/tutorial.html")
            page.locator("button.copybtn").first.click(force=True)
            expect(page.locator("button.copybtn.success").first).to_be_attached()
            assert page.evaluate("navigator.clipboard.readText()") == "pip install featuremaps"
            if width == 390:  # the navigation is behind a button
                page.locator("button.primary-toggle").click()
                page.get_by_role("dialog").get_by_role("link", name="Reference").first.click()
            else:
                page.get_by_role("link", name="Reference").first.click()
            page.wait_for_url("**/reference/index.html")
            page.goto(f"{url}/search.html?q=rollout")
            expect(page.locator("#search-results li a").first).to_be_visible()
            titles = page.locator("#search-results li").all_inner_texts()
            assert any("Attention of vision transformers" in title for title in titles)
            assert not [text for text in watch.complaints if not text.startswith("[PST]")]
            context.close()
