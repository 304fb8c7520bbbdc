"""Every model source and every dataset source, on real files that the tests make."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.archive.reader import Archive
from pipeline.datasets.adapter import as_image, as_label
from pipeline.datasets.base import ImageDataset, open_dataset
from pipeline.datasets.csv import CsvFile
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.datasets.huggingface import HuggingFaceDataset
from pipeline.datasets.image_folder import ImageFolder
from pipeline.datasets.sequence import FromSequence
from pipeline.datasets.synthetic import Synthetic
from pipeline.datasets.torchvision import TorchvisionDataset
from pipeline.datasets.webdataset import WebDataset
from pipeline.errors import ConfigError, SampleError, WeightsError
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Extraction
from pipeline.inputs.decoding import Decoding, decode
from pipeline.inputs.loading import Loader
from pipeline.layers.selector import LayerSelector
from pipeline.models.base import ModelSource
from pipeline.models.checkpoint import CheckpointModel
from pipeline.models.hub import HubModel
from pipeline.models.state_dict import state_digest
from pipeline.models.timm import TimmModel, transform_of
from pipeline.models.torchvision import TorchvisionModel
from pipeline.models.transformers import TransformersModel
from tests.conftest import photo, tiny_extraction

LABELS = {"ant": 0, "bee": 1}


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos in two class folders."""
    root = tmp_path_factory.mktemp("classes")
    for i, name in enumerate(("ant", "ant", "bee", "bee", "bee")):
        (root / name).mkdir(exist_ok=True)
        Image.fromarray(photo(i, (30 + i, 26))).save(root / name / f"{i}.png")
    return root


def sources(classes: Path, place: Path) -> dict[str, tuple[ImageDataset, list[str], list[int]]]:
    """Return every kind of dataset over the five photos, with the ids and labels it must have."""
    files = sorted(classes.rglob("*.png"))
    labels = [LABELS[path.parent.name] for path in files]
    relative = [path.relative_to(classes).as_posix() for path in files]
    with (place / "images.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "path", "label", "more"])
        writer.writerows(
            [f"n{i}", path, name, "x"]
            for i, (path, name) in enumerate(
                zip(files, [p.parent.name for p in files], strict=True)
            )
        )
    for number, part in enumerate((files[:3], files[3:])):
        with tarfile.open(place / f"s-{number:02d}.tar", "w") as archive:
            for path in part:
                for ending, content in (
                    ("png", path.read_bytes()),
                    ("cls", str(LABELS[path.parent.name]).encode()),
                    ("json", json.dumps({"note": 1}).encode()),
                ):
                    member = tarfile.TarInfo(f"k{path.stem}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    items = [
        (Image.open(path).convert("RGB"), label) for path, label in zip(files, labels, strict=True)
    ]
    keys = [f"k{i}" for i in range(5)]
    return {
        "image_folder": (ImageFolder(root=str(classes)), relative, labels),
        "flat_folder": (FlatFolder(root=str(classes)), relative, [-1] * 5),
        "csv": (CsvFile(path=str(place / "images.csv")), [f"n{i}" for i in range(5)], labels),
        "torchvision": (
            TorchvisionDataset(name="ImageFolder", root=str(classes)),
            [f"ImageFolder-{i:06d}" for i in range(5)],
            labels,
        ),
        "huggingface": (
            HuggingFaceDataset(name="imagefolder", arguments={"data_dir": str(classes)}),
            [f"train-{i:06d}" for i in range(5)],
            labels,
        ),
        "webdataset": (WebDataset(shards=(str(place / "s-{00..01}.tar"),)), keys, labels),
        "sequence": (FromSequence(items=items), [f"item-{i:06d}" for i in range(5)], labels),
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "kind",
    ["image_folder", "flat_folder", "csv", "torchvision", "huggingface", "webdataset", "sequence"],
)
def test_each_dataset_source_row_by_row(
    kind: str, workers: int, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    dataset, ids, labels = sources(classes, tmp_path)[kind]
    loader = Loader(batch_size=2, num_workers=workers)
    extract(
        tiny_extraction(
            tmp_path / "a", dataset=dataset, loader=loader, layers=LayerSelector(include=("conv1",))
        )
    )
    files = sorted(classes.rglob("*.png"))
    with Archive.open(tmp_path / "a") as archive:
        transform = tiny_extraction(tmp_path).model.load().transform
        assert [sample.id for sample in archive.samples] == ids
        assert [sample.label for sample in archive.samples] == labels
        for i, path in enumerate(files):
            expected = transform.pixels(Image.open(path).convert("RGB"))
            np.testing.assert_array_equal(archive.image(i).transpose(2, 0, 1), expected)
        if kind in ("image_folder", "csv", "torchvision", "huggingface"):
            names = [path.parent.name for path in files]
            assert [sample.label_name for sample in archive.samples] == names


def test_torchvisions_fake_data_and_unknown_names() -> None:
    images = open_dataset(
        TorchvisionDataset(name="FakeData", arguments={"size": 3, "image_size": [3, 8, 8]})
    )
    assert len(images.samples) == 3
    assert all(sample.label >= 0 for sample in images.samples)
    with pytest.raises(ConfigError, match="did you mean CIFAR10"):
        open_dataset(TorchvisionDataset(name="CIFAR11"))
    with pytest.raises(ConfigError, match="could not be opened"):
        open_dataset(TorchvisionDataset(name="CIFAR10", root="/nonexistent"))


def test_csv_mistakes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("file,label\na.png,1\n")
    with pytest.raises(ConfigError, match=r"dataset\.path_column: .*no column 'path'"):
        open_dataset(CsvFile(path=str(file)))
    with pytest.raises(ConfigError, match="did you mean label"):
        open_dataset(CsvFile(path=str(file), path_column="file", label_column="lable"))
    assert open_dataset(CsvFile(path=str(file), path_column="file")).samples[0].id == "a.png"
    file.write_text("path,id\na.png,1\nb.png,1\n")
    with pytest.raises(ConfigError, match="'1' occurs more than once"):
        open_dataset(CsvFile(path=str(file)))
    file.write_text("path,id\na.png\n")
    with pytest.raises(ConfigError, match="row 2: wrong number of cells"):
        open_dataset(CsvFile(path=str(file)))
    with pytest.raises(ConfigError, match="No such file"):
        open_dataset(CsvFile(path=str(tmp_path / "none.csv")))


def test_tar_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar")
    with pytest.raises(ConfigError, match="no readable uncompressed tar"):
        open_dataset(WebDataset(shards=(str(tmp_path / "a.tar"),)))
    with pytest.raises(ConfigError, match="no file matches"):
        open_dataset(WebDataset(shards=(str(tmp_path / "b.tar"),)))
    with pytest.raises(ConfigError, match="name the tar files"):
        open_dataset(WebDataset())


def test_the_adapter_takes_what_datasets_yield() -> None:
    array = photo()
    for value in (
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        array.astype(np.float64) / 255,
        Image.fromarray(array),
        {"bytes": _png(array), "path": None},
        _png(array),
    ):
        np.testing.assert_array_equal(np.asarray(decode(as_image(value), Decoding())), array)
    for wrong, text in (
        (array.astype(int), "int64"),
        (array - 0.5, "not normalised"),
        (3, "no image"),
    ):
        with pytest.raises(SampleError, match=text):
            as_image(wrong)
    assert as_label(np.int64(3)) == (3, "")
    assert as_label(torch.tensor(4)) == (4, "")
    assert as_label("7") == (7, "")
    assert as_label("cat") == (-1, "cat")
    assert as_label({"boxes": 1}) == (-1, "")


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


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
        ({"class_path": "mynet.Nat"}, "no class 'Nat'; did you mean Net"),
        ({"class_path": "mynut.Net"}, "importing mynut failed"),
        ({"class_path": "Net"}, "give package.module.Class"),
        ({"class_path": "mynet.number"}, "no class 'number'"),
        ({"class_path": "builtins.dict"}, "gives a dict, no torch module"),
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
    with pytest.raises(WeightsError, match=r"could not be downloaded .*model\.weights=null"):
        source.load()


@pytest.mark.parametrize(
    ("name", "size"), [("fcn_resnet50", 64), ("ssdlite320_mobilenet_v3_large", 320)]
)
def test_segmentation_and_detection_backbones(name: str, size: int, tmp_path: Path) -> None:
    from pipeline.inputs.transforms import TransformOverride

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
