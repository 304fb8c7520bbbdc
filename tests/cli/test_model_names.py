"""Model names as people copy them: Hugging Face folders, joint models, timm's many spellings."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import ConfigError, FeaturemapsError, WeightsError
from pipeline.models.timm import TimmModel
from pipeline.models.transformers import TransformersModel

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
VISION = SMALL | {"image_size": 32, "patch_size": 8}


def test_a_relative_folder_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.chdir(tmp_path)
    config = transformers.ViTConfig(**{**VISION, "image_size": [16, 24]})
    transformers.ViTModel(config).save_pretrained("vit")
    transformers.ViTImageProcessor(size={"shortest_edge": 16}).save_pretrained("vit")
    states = {TransformersModel(name=n).load().state_sha256 for n in ("vit", "./vit", "../" +
              tmp_path.name + "/vit", str(tmp_path / "vit"))}  # fmt: skip
    assert len(states) == 1
    for name in ("vit", "./vit"):
        random = TransformersModel(name=name, weights=None).load()
        assert random.module.config.hidden_size == 16  # the folder's, not ViT-base's 768
        assert random.transform.size == (16, 24)
        assert random.tokens.grid == (2, 3)
    (tmp_path / "empty").mkdir()
    for name, text in (
        ("./empty", "has no config.json"),
        ("empty", "is not a folder with a config.json"),
        ("./nowhere", "is not a folder with a config.json"),
        ("vit/config.json", "is not a folder with a config.json"),
        ("deit", "with model.weights=null it is a model type"),
    ):
        with pytest.raises(ConfigError, match=text):
            TransformersModel(name=name).load()
    (tmp_path / "vit" / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.name: \./vit: .*model\.safetensors"):
        TransformersModel(name="./vit").load()


@pytest.mark.parametrize("kind", ["clip", "siglip", "blip", "llava"])
def test_a_joint_model_gives_its_vision_tower(kind: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(**VISION)
    if kind == "llava":
        text = transformers.LlamaConfig(vocab_size=9, **SMALL)
        joint = transformers.LlavaModel(
            transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=8)
        )
        tower = joint.vision_tower
    else:
        config = transformers.CONFIG_MAPPING[kind](
            vision_config=VISION, text_config=SMALL | {"vocab_size": 9}
        )
        joint = transformers.AutoModel.from_config(config)
        tower = joint.vision_model
    joint.save_pretrained(tmp_path)
    loaded = TransformersModel(name=str(tmp_path)).load()
    assert not loaded.missing_keys
    assert (loaded.transform.size, loaded.tokens.grid) == ((32, 32), (4, 4))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.module(images).last_hidden_state, tower.eval()(images).last_hidden_state
        )


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("hf-hub:timm/resnet50.a1_in1k", "hf-hub:timm/resnet50.a1_in1k"),
        ("hf_hub:owner/name@main", "hf-hub:owner/name@main"),
        ("owner/name", "hf-hub:owner/name"),
        ("tv_resnet50", "resnet50.tv_in1k"),  # a deprecated alias
        ("vit_base_patch16_224_in21k", "vit_base_patch16_224.augreg_in21k"),
    ],
)
def test_timms_names_ask_for_the_right_weights(
    name: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    names = []

    def create(name: str, **kwargs: object) -> object:
        names.append((name, kwargs["pretrained"]))
        raise OSError("offline")

    with monkeypatch.context() as patched:
        patched.setattr(timm, "create_model", create)
        with pytest.raises(WeightsError, match=r"could not be downloaded: offline"):
            TimmModel(name=name).load()
    assert names == [(asked, True)]
    if asked.startswith("hf-hub:"):
        for weights in ("DEFAULT", None):  # the architecture too comes from the hub
            with pytest.raises(WeightsError, match="could not be downloaded"):
                TimmModel(name=name, weights=weights).load()


def test_timms_names_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from timm.models import save_for_hf

    module = timm.create_model("test_vit", num_classes=7)
    save_for_hf(module, str(tmp_path / "saved"))
    monkeypatch.chdir(tmp_path)
    for name in ("local-dir:saved", f"local-dir:{tmp_path}/saved", "./saved"):
        loaded = TimmModel(name=name).load()
        assert torch.equal(loaded.module.head.weight, module.head.weight)
        assert not loaded.missing_keys
        assert TimmModel(name=name, weights=None).load().module.num_classes == 7
    tagged = TimmModel(name="timm/test_vit.r160_in1k", weights=None).load()
    assert tagged.module.pretrained_cfg["tag"] == "r160_in1k"
    wrong: list[tuple[str, str | None, str]] = [
        ("test_vit.r161_in1k", None, "no weights 'r161_in1k'; did you mean r160_in1k"),
        ("test_vit.r160_in1k", "r161_in1k", "has no weights 'r161_in1k'"),
        ("resnet50.a1_in1k", "a2_in1k", "weights a1_in1k, but model.weights selects a2_in1k"),
        ("local-dir:nowhere", None, "has no config.json"),
        ("./nowhere", None, "timm has no model './nowhere'"),
        ("./saved", "a1_in1k", "has no weights 'a1_in1k'"),
        ("test_vitt", None, "did you mean test_vit"),
    ]
    for name, weights, text in wrong:
        with pytest.raises(FeaturemapsError) as caught:
            TimmModel(name=name, weights=weights).load()
        assert text in str(caught.value)
