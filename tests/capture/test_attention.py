"""Attention weights: kept where timm computes attention step by step; heads are their channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import capture
from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.verify import verify
from pipeline.cli.main import main
from pipeline.models.timm import TimmModel
from pipeline.renderers.grid import Grid
from pipeline.rendering.views import sample_view
from tests.helpers.small_vit import MODEL, SMALL


def test_attention_weights_are_archived_by_head_query_and_key(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = "layers.include=[blocks.*.attn.attn_drop,blocks.1]"
    words = (*MODEL, chosen, "layers.types=[]", "model.fused_attention=false")
    assert main(("extract", *words, f"archive={tmp_path}/a", f"hydra.run.dir={tmp_path}")) == 0
    assert verify(tmp_path / "a")["samples"] == 2
    source = TimmModel(name="vit_tiny_patch16_224", weights=None, arguments=SMALL)
    module = source.load(seed=0).module
    with Archive.open(tmp_path / "a") as archive:
        entry = archive.layers["blocks.0.attn.attn_drop"].entry
        assert entry.axes == ("head", "query", "key")
        assert entry.shape == (3, 17, 17)
        assert entry.channels == 3
        pixels = torch.from_numpy(archive.image(0).transpose(2, 0, 1)[None])
        images = source.load(seed=0).transform.normalize(pixels)
        with capture(module, ["blocks.0.attn.qkv"]) as found, torch.no_grad():
            module(images)
        query, key, _ = found["blocks.0.attn.qkv"].reshape(17, 3, 3, 8).permute(1, 2, 0, 3)
        expected = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1).numpy()
        stored = archive.layers["blocks.0.attn.attn_drop"][0]
        np.testing.assert_allclose(stored, expected, atol=1e-5)
        np.testing.assert_allclose(stored.sum(-1), 1, atol=1e-5)
        drawn = [*Grid().draw(sample_view(archive, archive.samples[0]))]
        assert drawn[0].layer == "blocks.0.attn.attn_drop"
        views = sample_view(archive, archive.samples[0]).layers
        np.testing.assert_array_equal(views[0].maps, stored)
    capfd.readouterr()


def test_fused_attention_says_what_to_set(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("blocks.0.attn.attn_drop", "blocks.*.attn.attn_drop"):
        assert main(("plan", *MODEL, f"layers.include=[{name}]", "layers.types=[]")) == 2
        assert "set model.fused_attention=false" in capfd.readouterr().err
