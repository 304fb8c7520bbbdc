"""Files know the parts of a configuration by kind, never by where their classes live."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.build import build
from pipeline.config.config_docs import choices
from pipeline.config.plugins import PLUGINS, kinds
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.plan import make_plan
from pipeline.extraction.reductions.pooling import SpatialMean
from pipeline.models.base import ModelSource
from pipeline.models.tiny import TinyModel
from tests.conftest import tiny_extraction


def test_no_import_path_stands_in_an_archive(tiny_archive: Path) -> None:
    text = (tiny_archive / "manifest.json").read_text(encoding="utf-8")
    assert "pipeline." not in text
    config = json.loads(text)["config"]
    assert [config[group]["_target_"] for group in ("model", "dataset", "reduction")] == [
        "tiny", "synthetic", "none",
    ]  # fmt: skip


def test_moving_a_module_changes_no_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extraction = tiny_extraction(tmp_path / "a", reduction=SpatialMean())
    before = make_plan(extraction).manifest
    for kind in (TinyModel, Synthetic, SpatialMean, type(extraction.loader.decoding)):
        monkeypatch.setattr(kind, "__module__", "pipeline.elsewhere")
    after = make_plan(extraction).manifest
    assert after.fingerprint == before.fingerprint
    assert after.config == before.config


def test_help_and_registration_agree_on_the_kinds() -> None:
    for group in ("dataset", "reduction", "renderers"):
        assert set(choices(group)) <= set(kinds(group)) | {"grid_grey"}
        assert set(kinds(group)) - set(choices(group)) <= {"sequence", "thumbnails"}
    assert set(PLUGINS) == {"model", "dataset", "reduction", "renderers"}


def test_a_kind_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"model._target_: unknown kind 'tim'; did you mean timm"):
        build({"_target_": "tim", "name": "x"}, ModelSource, "model")  # type: ignore[type-abstract]
