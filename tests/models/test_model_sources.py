"""Model sources: one's own classes, torch.hub, transformers, timm, torchvision."""

from __future__ import annotations

import importlib.metadata
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.capture.axes import Tokens
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ConfigError, WeightsError
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.dummy_forward import trace_model
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Extraction
from pipeline.models.base import ModelSource
from pipeline.models.checkpoint import CheckpointModel
from pipeline.models.hub import HubModel
from pipeline.models.module import FromModule
from pipeline.models.timm import TimmModel, transform_of
from pipeline.models.torchvision import TorchvisionModel
from pipeline.models.transformers import TransformersModel, tokens_of
from pipeline.models.transforms import Transform, TransformOverride
from pipeline.models.weights.state_dict import state_digest
from tests.conftest import photo, tiny_extraction

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.conv(x))

def wrapped(width=4):
    return nn.DataParallel(Net(width))

number = 3
"""


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_class_of_ones_own_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    from safetensors.torch import save_file

    (tmp_path / "mynet.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    random = CheckpointModel(class_path="mynet.Net", weights=None, arguments={"width": 6}).load(
        seed=2
    )
    state = random.module.state_dict()
    path = tmp_path / f"net.{ending}"
    torch.save(state, path) if ending == "pt" else save_file(state, path)
    source = CheckpointModel(class_path="mynet.Net", weights=str(path), arguments={"width": 6})
    assert source.load().state_sha256 == random.state_sha256
    made = Extraction(
        model=source,
        dataset=Synthetic(samples=2),
        layers=LayerSelector(include=("conv",)),
        archive=str(tmp_path / "a"),
        device="cpu",
    )
    extract(made)
    with Archive.open(tmp_path / "a") as archive:
        image = torch.from_numpy(archive.image(1).transpose(2, 0, 1).copy())[None]
        x = random.transform.normalize(image)
        expected = torch.nn.functional.conv2d(
            x, state["conv.weight"], state["conv.bias"], padding=1
        )
        np.testing.assert_allclose(archive.layers["conv"][1], expected[0].numpy(), atol=1e-5)
    wrapped = CheckpointModel(class_path="mynet.wrapped", weights=None, arguments={"width": 6})
    assert state_digest(wrapped.load(seed=2).module) == random.state_sha256
    loose = CheckpointModel(class_path="mynet.Net", weights=str(path), strict=False)
    with pytest.raises(WeightsError, match=r"nothing in .* fits"):
        loose.load()
    for change, text in (
        ({"class_path": "mynet.Nat"}, "no class or function 'Nat'; did you mean Net"),
        ({"class_path": "mynut.Net"}, "importing mynut failed"),
        ({"class_path": "Net"}, "use package.module.Class"),
        ({"class_path": "mynet.number"}, "no class or function 'number'"),
        ({"class_path": "builtins.dict"}, "builtins.dict: dict is not a torch module"),
        ({"class_path": "mynet.Net", "arguments": {"depth": 3}}, "failed: TypeError"),
        ({"class_path": "mynet.Net", "weights": "DEFAULT"}, "has no DEFAULT"),
    ):
        with pytest.raises(ConfigError) as caught:
            CheckpointModel(**({"weights": None} | change)).load()  # type: ignore[arg-type]
        assert text in str(caught.value)


def test_a_local_torch_hub_repository(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    body = NET.replace("number = 3", "def tiny_net(width=4):\n    return Net(width)\n")
    (repo / "hubconf.py").write_text("dependencies = ['torch']\n" + body)
    loaded = HubModel(repo=str(repo), name="tiny_net", arguments={"width": 5}).load()
    assert loaded.module.conv.out_channels == 5
    with pytest.raises(ConfigError, match="did you mean tiny_net"):
        HubModel(repo=str(repo), name="tiny_nut").load()
    with pytest.raises(ConfigError, match=r"model\.trust=true"):
        HubModel(repo="owner/name", name="x").load()
    with pytest.raises(ConfigError, match="neither a folder nor owner/name"):
        HubModel(repo="./nowhere", name="x").load()
    with pytest.raises(ConfigError, match=r"no hubconf\.py"):
        HubModel(repo=str(tmp_path), name="x").load()


@pytest.mark.parametrize(
    ("kind", "prefix", "grid", "more"),
    [
        ("vit", 1, (4, 4), {}),
        ("deit", 2, (4, 4), {}),
        ("vit_msn", 1, (4, 4), {}),
        ("dpt", 1, (4, 4), {"backbone_out_indices": [0, 0, 0, 0]}),
        ("dinov2_with_registers", 5, (4, 4), {}),
        ("clip_vision_model", 1, (4, 4), {}),
        ("siglip_vision_model", 0, (4, 4), {}),
        ("ijepa", 0, (4, 4), {}),
        ("internvl_vision", 1, (4, 4), {"image_size": [32, 32], "patch_size": [8, 8]}),
        ("vit_mae", 1, (1, 4), {}),  # a random quarter, in random order: a strip
        ("segformer", 0, (8, 8), {"num_attention_heads": [1, 2, 5, 8], "patch_size": None}),
        ("yolos", 1, None, {"image_size": [32, 32]}),  # other tokens stand behind the patches
    ],
)
def test_transformers_tokens_have_their_grid(
    kind: str, prefix: int, grid: tuple[int, int] | None, more: dict[str, object]
) -> None:
    sizes: dict[str, object] = {
        "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32,
    }  # fmt: skip
    extraction = Extraction(
        model=TransformersModel(name=kind, weights=None, arguments=sizes | more),
        dataset=Synthetic(samples=1), layers=LayerSelector(include=("re:.*(layers?|blocks)\\.0",)),
        device="cpu",
    )  # fmt: skip
    selection = trace_model(extraction).selection
    (layer,) = selection.select(extraction.layers)
    assert (layer.axes.prefix_tokens, layer.axes.grid) == (prefix, grid)


def test_a_cnn_of_transformers_has_no_tokens() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("efficientnet", image_size=64)
    assert config.strides
    assert tokens_of(config, Transform(crop=(64,))) == Tokens()


def test_an_older_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"transformers": "4.41.2"}
    installed = importlib.metadata.version
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: versions.get(name) or installed(name)
    )
    with pytest.raises(ConfigError, match=r"transformers>=4\.56 .*==4\.41\.2.*pip install 'feat"):
        TransformersModel(name="vit", weights=None).load()


def test_a_local_transformers_folder_gives_the_same_model(tmp_path: Path) -> None:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    original = transformers.ViTModel(config).eval()
    original.save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    ).save_pretrained(tmp_path / "vit")
    source = TransformersModel(name=str(tmp_path / "vit"))
    loaded = source.load()
    assert loaded.transform.size == (32, 32)
    assert loaded.transform.mean == (0.1, 0.2, 0.3)
    assert (loaded.tokens.prefix, loaded.tokens.grid) == (1, (4, 4))
    block = next(
        name for name, _ in loaded.module.named_modules() if name.endswith(("layer.1", "layers.1"))
    )
    extract(
        Extraction(
            model=source,
            dataset=Synthetic(samples=3),
            layers=LayerSelector(include=(block,)),
            archive=str(tmp_path / "a"),
            device="cpu",
        )
    )
    with Archive.open(tmp_path / "a") as archive:
        layer = archive.layers[block]
        assert layer.axes == ("sample", "token", "channel")
        assert (layer.entry.grid, layer.entry.prefix_tokens) == ((4, 4), 1)
        image = torch.from_numpy(archive.image(2).transpose(2, 0, 1).copy())[None]
        with torch.inference_mode():
            expected = original(
                loaded.transform.normalize(image), output_hidden_states=True
            ).hidden_states[-1]
        np.testing.assert_allclose(layer[2], expected[0].numpy(), atol=1e-5)
    small = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    fresh = TransformersModel(name="vit", weights=None, arguments={"image_size": 64} | small)
    assert fresh.load().tokens.grid == (4, 4)
    with pytest.raises(ConfigError, match="did you mean vit"):
        TransformersModel(name="vitt", weights=None).load()


@pytest.mark.parametrize(
    ("stored", "declared"),
    [("float16", "float32"), ("float32", "float16"), ("mixed", None)],
)
def test_the_files_own_type_is_reported_and_its_values_are_kept(
    stored: str, declared: str | None, tmp_path: Path
) -> None:
    import json

    import transformers
    from safetensors.torch import load_file, save_file

    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=16, patch_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for name, tensor in state.items():
        if stored == "float16" or (stored == "mixed" and "layernorm" not in name):
            state[name] = tensor.half()
        elif stored == "mixed":
            state[name] = tensor + 1e-5
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    settings = json.loads((tmp_path / "config.json").read_text())
    settings.pop("torch_dtype", settings.pop("dtype", None))
    settings |= {"dtype": declared} if declared else {}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    loaded = TransformersModel(name=str(tmp_path)).load()
    assert loaded.weights_dtype == ("" if stored == "float32" else "float16")
    values = [tensor.float().flatten().tolist() for tensor in state.values()]
    own = [*loaded.module.state_dict().values()]  # by other names
    assert {tensor.dtype for tensor in own} == {torch.float32}
    assert sorted(tensor.flatten().tolist() for tensor in own) == sorted(values)


def test_nan_and_incomplete_folders_of_libraries_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import json

    import timm
    from safetensors.torch import save_file

    state = timm.create_model("resnet10t", num_classes=3).state_dict()
    state["fc.bias"][0] = torch.nan
    save_file(state, tmp_path / "model.safetensors")
    config = {"architecture": "resnet10t", "num_classes": 3, "pretrained_cfg": {"num_classes": 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = TimmModel(name=f"local-dir:{tmp_path}")
    source.load()
    assert f"NaN in 1 tensor of local-dir:{tmp_path}: fc.bias" in caplog.text
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="KeyError: 'architecture'"):
        source.load()


def test_arguments_that_a_model_type_lacks_or_rejects(caplog: pytest.LogCaptureFixture) -> None:
    small: dict[str, object] = {"hidden_size": 32, "num_hidden_layers": 1, "image_size": 32,
                                "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip
    TransformersModel(name="vit", weights=None, arguments=small).load()
    assert "no such setting" not in caplog.text
    typo = TransformersModel(name="vit", weights=None, arguments=small | {"patchsize": 8})
    typo.load()
    assert "model.arguments.patchsize: vit has no such setting" in caplog.text
    assert "did you mean patch_size?" in caplog.text
    wrong: dict[str, ModelSource] = {
        "'image_size' with value 'x'": TransformersModel(
            name="vit", weights=None, arguments={"image_size": "x"}
        ),
        "resnet18 rejected them: .*negative dimension": TorchvisionModel(
            name="resnet18", weights=None, arguments={"num_classes": -1}
        ),
        "vit_b_16 rejected them: Input shape indivisible": TorchvisionModel(
            name="vit_b_16", weights=None, arguments={"image_size": 100}
        ),
    }
    for text, source in wrong.items():
        with pytest.raises(ConfigError, match=rf"model\.arguments: .*{text}"):
            source.load()


def test_timm_models_by_name_weights_and_transform(tmp_path: Path) -> None:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    loaded = TimmModel(name="test_vit", weights=None).load()
    assert loaded.tokens.prefix == 1
    torch.save(loaded.module.state_dict(), tmp_path / "w.pth")
    again = TimmModel(name="test_vit", weights=str(tmp_path / "w.pth")).load()
    assert again.state_sha256 == loaded.state_sha256
    image = Image.fromarray(photo(1, (300, 410)))
    for name in (
        "resnet10t",
        "test_vit",
        "convnext_atto",
        "xcit_nano_12_p8_224",
        "efficientnet_b0",
    ):
        model = timm.create_model(name, pretrained=False)
        own = create_transform(**resolve_model_data_config(model), is_training=False)
        transform = transform_of(model)
        pixels = torch.from_numpy(transform.pixels(image))[None]
        torch.testing.assert_close(transform.normalize(pixels)[0], own(image), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="did you mean resnet18"):
        TimmModel(name="resnet118", weights=None).load()
    with pytest.raises(ConfigError, match="has no weights 'a9_in1k'"):
        TimmModel(name="resnet18", weights="a9_in1k").load()
    with pytest.raises(ConfigError, match=r"model\.arguments"):
        TimmModel(name="resnet18", weights=None, arguments={"wdth": 3}).load()


def test_one_input_channel_means_grey_and_four_are_refused() -> None:
    grey = TimmModel(name="resnet10t", weights=None, arguments={"in_chans": 1}).load()
    colour = TimmModel(name="resnet10t", weights=None).load().transform
    assert grey.transform.mean == pytest.approx((np.mean(colour.mean),))
    assert grey.transform.std == pytest.approx((np.mean(colour.std),))
    picture = Image.fromarray(photo(1, (300, 410)))
    pixels = grey.transform.pixels(picture)
    resized = picture.convert("L")
    expected = colour.pixels(Image.merge("RGB", [resized] * 3))[:1]
    np.testing.assert_array_equal(pixels, expected)
    batch = torch.from_numpy(pixels.copy())[None]
    assert grey.module(grey.transform.normalize(batch)).shape == (1, 1000)
    for channels in (2, 4):
        with pytest.raises(ConfigError, match=rf"in_chans: {channels} channels are not supported"):
            TimmModel(name="resnet10t", arguments={"in_chans": channels}).load()


@pytest.mark.parametrize(
    "source",
    [
        TimmModel(name="resnet10t"),
        TransformersModel(name="google/vit-base-patch16-224"),
        HubModel(repo="owner/name", name="net", trust=True),
        TorchvisionModel(name="resnet18"),
    ],
)
def test_downloads_that_fail_say_so_at_once(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import socket

    def offline(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"could not be downloaded: .*; offline, use model\."):
        source.load()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("fcn_resnet50", 64),
        pytest.param("ssdlite320_mobilenet_v3_large", 320, marks=pytest.mark.slow),
    ],
)
def test_segmentation_and_detection_backbones(name: str, size: int, tmp_path: Path) -> None:
    from pipeline.models.transforms import TransformOverride

    source = TorchvisionModel(
        name=name, weights=None, transform=TransformOverride(resize=(size, size), crop=(size,))
    )
    layer = "backbone.layer1" if name.startswith("fcn") else "backbone.features.0.0"
    extract(
        Extraction(
            model=source,
            dataset=Synthetic(samples=2),
            layers=LayerSelector(include=(layer,)),
            archive=str(tmp_path / "a"),
            device="cpu",
        )
    )
    with Archive.open(tmp_path / "a") as archive:
        assert archive.layers[layer].axes == ("sample", "channel", "height", "width")


@pytest.mark.parametrize(
    ("name", "layers", "prefix", "grids"),
    [
        ("crossvit_9_240", ("blocks.0.blocks.0.0", "blocks.0.blocks.1.2"), 1, [(20, 20), (14, 14)]),
        pytest.param("pit_ti_224", ("transformers.1.blocks.0",), 1, [(14, 14)],
                     marks=pytest.mark.slow),
        pytest.param("mixer_s32_224", ("blocks.0",), 0, [(7, 7)], marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", ("layers.2.blocks.0.mlp.fc1",), 0, [(14, 14)],
                     marks=pytest.mark.slow),
        ("hiera_tiny_224", ("blocks.0",), 0, [None]),  # its tokens are in another order
    ],
)  # fmt: skip
def test_timm_models_that_do_not_count_their_tokens(
    name: str, layers: tuple[str, ...], prefix: int, grids: list[tuple[int, int] | None]
) -> None:
    extraction = Extraction(
        model=TimmModel(name=name, weights=None), dataset=Synthetic(samples=1), device="cpu",
        layers=LayerSelector(include=layers),
    )  # fmt: skip
    found = trace_model(extraction).selection.select(extraction.layers)
    assert [layer.axes.prefix_tokens for layer in found] == [prefix] * len(layers)
    assert [layer.axes.grid for layer in found] == grids


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("normed", [False, True])
def test_a_module_in_memory_is_extracted_as_it_is_and_trained_on(
    normed: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 4, 3)
    module = torch.nn.Sequential(
        torch.nn.utils.weight_norm(conv) if normed else conv, torch.nn.BatchNorm2d(4)
    )
    module(torch.rand(2, 3, 8, 8)).sum().backward()  # leaves a weight with a gradient
    before = {name: value.clone() for name, value in module.state_dict().items()}
    transform = TransformOverride(resize=(8, 8), crop=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    extraction = tiny_extraction(
        tmp_path, model=FromModule(module=module, transform=transform),
        layers=LayerSelector(include=("0", "1")),
    )  # fmt: skip
    extract(extraction)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with Archive.open(tmp_path) as archive, torch.no_grad():
        assert archive.manifest.identity["model"]["name"] == "Sequential"
        images = np.stack([archive.image(row) for row in range(len(archive))])
        values = torch.from_numpy(images).movedim(3, 1) / 255
        module.eval()
        expected = module((values - 0.5) / 0.5)
        np.testing.assert_allclose(archive.layers["1"][:], expected, atol=1e-5)


def test_what_is_no_module_in_memory() -> None:
    for wrong, kind in ((3, "int"), (torch.nn.Conv2d, "type")):
        with pytest.raises(ConfigError, match=f"^model.module: {kind} is not a torch module"):
            FromModule(module=wrong).load()
    module = torch.nn.Identity()
    module.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"^model.module: Identity cannot be copied: .*pickle"):
        FromModule(module=module).load()
