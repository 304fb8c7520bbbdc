"""Parameters that did not come from the weights file are listed; layers on them are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.archive.format.manifest import Manifest
from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import LayerError, WeightsError
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Extraction
from pipeline.models.base import ModelSource
from pipeline.models.checkpoint import CheckpointModel
from pipeline.models.hub import HubModel
from pipeline.models.timm import TimmModel
from pipeline.models.transformers import TransformersModel


def made(model: ModelSource, layers: str, archive: Path, *, seed: int = 0) -> Manifest:
    """Extract one image; return the manifest."""
    extract(
        Extraction(
            model=model, dataset=Synthetic(samples=1), layers=LayerSelector(include=(layers,)),
            archive=str(archive), device="cpu", seed=seed,
        )
    )  # fmt: skip
    return Manifest.read(archive)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a ViTForImageClassification, which has no pooler."""
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit") / "vit"
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=[16, 24], patch_size=8,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_a_layer_that_the_checkpoint_lacks_is_refused_by_name(
    classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pipeline")
    model = TransformersModel(name=str(classifier))
    both = r"pooler depends on pooler\.dense\.bias, pooler\.dense\.weight, .*allow_random=true"
    with pytest.raises(LayerError, match=both):
        made(model, "pooler", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    assert "in the weights file but unused: classifier.bias, classifier.weight" in caplog.text
    manifests = [made(model, "layernorm", tmp_path / str(n), seed=n) for n in range(2)]
    for manifest in manifests:
        missing = manifest.identity["model"]["missing_keys"]
        assert missing == ["pooler.dense.bias", "pooler.dense.weight"]
    with Archive.open(tmp_path / "0") as one, Archive.open(tmp_path / "1") as other:
        np.testing.assert_array_equal(one.layers["layernorm"][0], other.layers["layernorm"][0])
    allowed = TransformersModel(name=str(classifier), allow_random=True)
    made(allowed, "pooler", tmp_path / "allowed")
    assert "these activations are random" in caplog.text


def test_names_with_a_prefix_load_without_it_and_foreign_ones_are_refused(
    classifier: Path, tmp_path: Path
) -> None:
    state = load_file(classifier / "model.safetensors")
    expected = state["vit.embeddings.cls_token"]
    for prefix, given in (("backbone.", None), ("a.b.", None), ("net.", "net.vit"), ("x_", "")):
        folder = tmp_path / prefix
        shutil.copytree(classifier, folder)
        renamed = {prefix + name: tensor for name, tensor in state.items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
        source = TransformersModel(name=str(folder), prefix=given)
        if given == "":
            with pytest.raises(WeightsError, match=r"none of the weights fit .* x_vit\.embed"):
                source.load()
            continue
        loaded = source.load()
        assert torch.equal(loaded.module.embeddings.cls_token, expected)
        assert list(loaded.missing_keys) == ["pooler.dense.bias", "pooler.dense.weight"]

    both = {
        f"{net}.{name}": tensor for net in ("student", "teacher") for name, tensor in state.items()
    }
    save_file(
        {n: t.clone() for n, t in both.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(
        WeightsError, match=r"2 networks .*prefix=student\.vit\. or model\.prefix=te"
    ):
        TransformersModel(name=str(folder)).load()
    TransformersModel(name=str(folder), prefix="teacher.vit").load()


def test_a_shape_that_differs_is_refused_like_a_missing_one(
    classifier: Path, tmp_path: Path
) -> None:
    model = TransformersModel(name=str(classifier), arguments={"intermediate_size": 8})
    assert len(model.load().missing_keys) == 5
    with pytest.raises(LayerError, match=r"depends on layers\.0\.mlp\.fc1\.bias, "):
        made(model, "layernorm", tmp_path / "a")
    made(model, "embeddings", tmp_path / "b")


NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.side = nn.Conv2d(3, 1, 3)
        self.mask = nn.Identity()
        self.main = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        side = self.side(x)
        mask = self.mask((side > 0).float())
        x = self.main(self.first(x))
        return self.head(x.mean((2, 3)))

def net():
    return Net()

def copied():
    made = Net()
    with torch.no_grad():
        for n, parameter in enumerate(made.parameters()):
            parameter.copy_(torch.full_like(parameter, 0.1 * n))
    return made

def rebuilt():
    made = copied()
    made.load_state_dict(made.state_dict())
    made.head = nn.Linear(4, 7)
    return made
"""


def test_dependence_is_told_by_values_not_by_order(tmp_path: Path) -> None:
    (tmp_path / "missing_net.py").write_text(NET)
    path = f"{tmp_path}/missing_net.py:Net"
    state = CheckpointModel(class_path=path, weights=None).load().module.state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith(("side", "head"))}
    torch.save(kept, tmp_path / "part.pth")
    model = CheckpointModel(class_path=path, weights=str(tmp_path / "part.pth"), strict=False)
    # The side branch runs before `main`, and `mask` compares: NaN becomes an ordinary 0.
    manifest = made(model, "main", tmp_path / "main")
    assert {*manifest.identity["model"]["missing_keys"]} == {*state} - {*kept}
    for layer, names in (("side", "side"), ("mask", "side"), ("head", "head")):
        with pytest.raises(LayerError, match=rf"{layer} depends on {names}\.weight"):
            made(model, layer, tmp_path / "no")


def test_entry_points_of_torch_hub_report_what_they_loaded(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(NET)
    with pytest.raises(LayerError, match=r"first depends on first\.weight, first\.bias, which"):
        made(HubModel(repo=str(tmp_path), name="net"), "first", tmp_path / "no")
    made(HubModel(repo=str(tmp_path), name="net", weights=None), "first", tmp_path / "seeded")
    assert not HubModel(repo=str(tmp_path), name="copied").load().missing_keys
    rebuilt = HubModel(repo=str(tmp_path), name="rebuilt")
    assert list(rebuilt.load().missing_keys) == ["head.weight", "head.bias"]
    made(rebuilt, "main", tmp_path / "main")


def test_a_new_head_of_a_pretrained_timm_model(tmp_path: Path) -> None:
    source = TimmModel(name="test_vit", weights=None).load()
    torch.save(source.module.state_dict(), tmp_path / "w.pth")
    local = {"pretrained_cfg_overlay": {"file": str(tmp_path / "w.pth")}}
    assert TimmModel(name="test_vit", arguments=local).load().state_sha256 == source.state_sha256
    other = TimmModel(name="test_vit", arguments=local | {"num_classes": 5})
    assert list(other.load().missing_keys) == ["head.weight", "head.bias"]
    with pytest.raises(LayerError, match=r"head depends on head\.weight, head\.bias"):
        made(other, "head", tmp_path / "no")
    features = TimmModel(name="test_vit", arguments=local | {"features_only": True}).load()
    assert not features.missing_keys


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_weights_are_cast_and_the_manifest_says_so(
    classifier: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    import transformers

    model = transformers.AutoModelForImageClassification.from_pretrained(classifier)
    model.to(dtype).save_pretrained(tmp_path / "short")
    source = TransformersModel(name=str(tmp_path / "short"))
    loaded = source.load()
    assert {value.dtype for value in loaded.module.state_dict().values()} == {torch.float32}
    stored = load_file(tmp_path / "short" / "model.safetensors")["vit.embeddings.cls_token"]
    assert torch.equal(loaded.module.embeddings.cls_token, stored.float())
    manifest = made(source, "layernorm", tmp_path / "archive")
    assert manifest.identity["model"]["weights_dtype"] == str(dtype).removeprefix("torch.")
