"""Results that were wrong or stale once, each found by trying what nobody had listed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.archive.info import archive_facts, describe
from pipeline.archive.pack import pack
from pipeline.archive.reader import Archive
from pipeline.datasets.base import ImageDataset
from pipeline.datasets.image_folder import ImageFolder
from pipeline.datasets.sequence import SequenceImages
from pipeline.datasets.synthetic import Synthetic
from pipeline.datasets.torchvision import TorchvisionDataset
from pipeline.errors import ConfigError, LayerError
from pipeline.extraction import environment
from pipeline.extraction.extract import extract
from pipeline.extraction.reductions import PerLayer, SpatialMean
from pipeline.extraction.settings import OnError, OnNonfinite, Storage, StoredType
from pipeline.inputs.loading import Loader
from pipeline.inputs.samples import Images, Sample
from pipeline.inputs.transforms import Transform, TransformOverride
from pipeline.layers.selector import LayerSelector
from pipeline.models.base import Built, ModelSource
from pipeline.models.timm import TimmModel
from pipeline.models.tiny import TinyModel, tiny_network
from pipeline.models.torchvision import TorchvisionModel
from tests.conftest import Run, photo, tiny_extraction

AT_64 = TransformOverride(resize=(64,), crop=(64,))

NET = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.conv(x * {factor}))
"""


# ---------------------------------------------------------------- 1: stale


def own_model(folder: Path, factor: float, name: str) -> str:
    """Write a module with a model; every factor needs a name of its own (imports are kept)."""
    (folder / f"{name}.py").write_text(NET.format(factor=factor))
    return f"{name}.Net"


def test_1_an_edited_forward_is_noticed(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    common = (
        "model=checkpoint", "model.class_path=stale_net.Net", "model.weights=null",
        "layers.include=[act]", "dataset=synthetic", "dataset.samples=6", "device=cpu",
        "loader.batch_size=2", "storage.shard_samples=2", f"archive={tmp_path / 'a'}",
    )  # fmt: skip
    own_model(tmp_path, 1.0, "stale_net")
    assert run("extract", *common)[0] == 0
    assert run("extract", *common)[0] == 0  # the same again: nothing to do
    (tmp_path / "a" / "COMPLETE.json").unlink()  # as after a kill
    (tmp_path / "a" / "shards" / "00002.h5").unlink()
    own_model(tmp_path, 2.0, "stale_net")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    del sys.modules["stale_net"]
    import importlib

    importlib.invalidate_caches()
    code, _, err = run("extract", *common)
    assert code == 2
    assert "model: act returns other values for the same image; its code has changed" in err
    assert err.count("\n") == 1


def test_1_another_machine_may_round_differently_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    extract(tiny_extraction(tmp_path / "a"))
    real = environment.describe
    monkeypatch.setattr(environment, "describe", lambda d: real(d) | {"device": "another CPU"})
    monkeypatch.setattr(TinyModel, "build", scaled(TinyModel.build, 1 + 1e-5))
    with caplog.at_level(logging.WARNING):
        assert extract(tiny_extraction(tmp_path / "a")).written == 0
    assert "differ by rounding there and here" in caplog.text
    monkeypatch.setattr(TinyModel, "build", scaled(TinyModel.build, 1.01))
    with pytest.raises(ConfigError, match=r"conv1 .*returns other values"):
        extract(tiny_extraction(tmp_path / "a"))
    monkeypatch.undo()
    monkeypatch.setattr(TinyModel, "build", scaled(TinyModel.build, 1 + 1e-5))
    with pytest.raises(ConfigError, match=r"conv1 .*returns other values"):  # the same machine
        extract(tiny_extraction(tmp_path / "a"))


def scaled(build: Callable[..., Built], factor: float) -> Callable[..., Built]:
    """Return a way of building whose model's first layer returns so many times as much."""

    def changed(source: TinyModel, seed: int) -> Built:
        built = build(source, seed)
        built.module.conv1.register_forward_hook(lambda _m, _a, output: output * factor)
        return built

    return changed


def test_1_a_sweep_does_not_serve_an_edited_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli.main import main

    command = (
        "extract", "-m", "model=tiny", "dataset=synthetic", "dataset.samples=2", "device=cpu",
        "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}",
    )  # fmt: skip
    assert main(command) == 0
    monkeypatch.setattr(TinyModel, "build", scaled(TinyModel.build, 2.0))
    assert main(command) != 0
    capfd.readouterr()
    failed = [json.loads(p.read_text()) for p in (tmp_path / "sweep").glob("*/status.json")]
    assert len(failed) == 2
    assert all("returns other values" in status["error"] for status in failed)


class Moving:
    """A dataset whose images change between runs, and whose class does not tell."""

    shift = 0

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(photo(index + Moving.shift))


@dataclass(frozen=True, kw_only=True)
class MovingDataset(ImageDataset):
    """The same as a plug-in without a content digest."""

    def open(self) -> Images:
        return _MovingImages([Sample(id=str(i)) for i in range(4)], Moving())


class _MovingImages(SequenceImages):
    digest = None  # type: ignore[assignment]


def test_1_images_that_changed_without_a_digest_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.datasets.base.content_digest", lambda _s: None)
    monkeypatch.setattr("pipeline.extraction.plan.content_digest", lambda _s: None)
    extract(tiny_extraction(tmp_path / "a", dataset=MovingDataset()))
    monkeypatch.setattr(Moving, "shift", 7)
    with pytest.raises(ConfigError, match=r"sample 0 \(0\) is decoded to other pixels now"):
        extract(tiny_extraction(tmp_path / "a", dataset=MovingDataset()))


def test_1_torchvision_datasets_are_told_apart_by_their_content(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.fromarray(photo(1)).save(tmp_path / "photos" / label / "x.png")
    data = TorchvisionDataset(name="ImageFolder", root=str(tmp_path / "photos"))
    fake = TorchvisionDataset(name="FakeData", arguments={"size": 3, "image_size": [3, 20, 20]})
    for number, source in enumerate((data, fake)):
        extract(tiny_extraction(tmp_path / str(number), dataset=source))
        manifest = json.loads((tmp_path / str(number) / "manifest.json").read_text())
        assert len(manifest["identity"]["dataset"]["sha256_of_contents"]) == 64
    Image.fromarray(photo(2)).save(tmp_path / "photos" / "b" / "x.png")
    with pytest.raises(ConfigError, match="sha256_of_contents"):
        extract(tiny_extraction(tmp_path / "0", dataset=data))


def test_1_versions_and_pixels_are_recorded(opened: Archive) -> None:
    import hashlib

    assert "transformers" in environment.VALUE_AFFECTING
    installed = find_spec("transformers") is not None
    assert ("transformers" in opened.manifest.environment["versions"]) == installed
    digests = [sample.pixels_sha256 for sample in opened.samples]
    stored = [np.ascontiguousarray(opened.image(i).transpose(2, 0, 1)) for i in range(7)]
    assert digests == [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in stored]
    whole = hashlib.sha256("".join(digests).encode()).hexdigest()
    assert opened.complete.pixels_sha256 == whole
    assert whole[:16] in describe(archive_facts(opened.path), as_json=False)


# ---------------------------------------------------------------- 2: jobs that share a folder


def test_2_render_draws_every_archive_of_a_sweep(
    tiny_archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from pipeline.cli.main import main

    for name in ("one", "two"):
        shutil.copytree(tiny_archive, tmp_path / name / "archive")
    archives = f"archive={tmp_path}/one/archive,{tmp_path}/two/archive"
    draw = ("renderers=[mean_map]", "render.num_workers=0")
    assert main(("render", "-m", archives, *draw, f"hydra.sweep.dir={tmp_path / 's'}")) == 0
    assert "2 of 2 jobs done" in capfd.readouterr().out
    pages = sorted((tmp_path / "s").glob("*/gallery/index.html"))
    assert [page.parent.parent.name.split("-")[0] for page in pages] == ["one", "two"]
    code = main(("render", "-m", archives, *draw, f"hydra.sweep.dir={tmp_path / 't'}",
                 "hydra.sweep.subdir=same"))  # fmt: skip
    err = capfd.readouterr().err
    assert code == 2
    assert "would both write to same" in err
    assert not (tmp_path / "t").exists()  # an error before either starts


def test_2_jobs_that_differ_have_names_that_differ(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli.job_names import job_name
    from pipeline.cli.main import main

    choices = {"model": "torchvision", "dataset": "synthetic", "layers": "blocks"}
    pairs = [
        (["model=timm", "model.name=x"], ["model=torchvision", "model.name=x"]),
        (["layers=convs", "layers.include=[a]"], ["layers=blocks", "layers.include=[a]"]),
        (["archive=a/archive"], ["archive=b/archive"]),
    ]
    for one, other in pairs:
        assert job_name(one, choices if "model" in one[0] else {}) != job_name(
            other, choices if "model" in one[0] else {}
        )
    common = ("extract", "-m", "model=tiny", "dataset=synthetic", f"hydra.sweep.dir={tmp_path}/s")
    assert main((*common, "seed=1,1")) == 2
    assert "is there twice" in capfd.readouterr().err
    assert main((*common, "layers.include=conv1,[conv1]")) == 2
    assert "would both write to" in capfd.readouterr().err


# ---------------------------------------------------------------- 3: filters


def test_3_filters_are_those_that_see_the_image_in_execution_order(tmp_path: Path) -> None:
    model = TimmModel(name="efficientnet_b0", weights=None, arguments={})
    extract(tiny_extraction(
        tmp_path / "a", model=model, layers=LayerSelector(include=("conv_stem",)),
        dataset=Synthetic(samples=1, height=64, width=64),
    ))  # fmt: skip
    with Archive.open(tmp_path / "a") as archive:
        assert {name: w.shape for name, w in archive.filters.items()} == {
            "conv_stem": (32, 3, 3, 3)
        }


def test_3_several_convolutions_on_the_image_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import nn

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.Conv2d(3, 5, 3, padding=1)
            self.early = nn.Conv2d(3, 3, 5, padding=2)
            self.colour = nn.Conv2d(3, 4, 1)  # of what `early` returns: sees no image

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            late = self.late(x)
            return self.colour(self.early(x)) + late[:, :4]

    monkeypatch.setattr(
        TinyModel, "build",
        lambda _s, seed: Built(module=Two(), transform=Transform(resize=(16,), crop=(16,))),
    )  # fmt: skip
    extract(tiny_extraction(tmp_path / "a", layers=LayerSelector(include=("late",))))
    with Archive.open(tmp_path / "a") as archive:
        assert list(archive.filters) == ["late", "early"]


# ---------------------------------------------------------------- 4: indexing


@pytest.mark.parametrize(
    "index",
    [
        0, -1, np.int64(2), slice(None), slice(1, 6, 2), slice(None, None, -1), slice(5, 1, -2),
        slice(9, 12), ..., (0, 2), (3, ..., 1), (slice(None), 0), (slice(2, 5), slice(0, 3), 4),
        (0, 1, 2, 3), ([0, 5], 1), ([5, 0, -1],), [True] * 3 + [False] * 4, np.arange(7) > 3,
        ([1, 2], slice(None), slice(None, None, 3)), (slice(None), slice(3, 0, -1), ...),
        ([], 1), (np.array([6, 6, 0]), ..., slice(1, 5, 2)), (..., slice(0, 0)), (slice(1, 1), 2),
        (..., -1, -2), range(1, 4), (),
    ],
    ids=repr,
)  # fmt: skip
def test_4_indexing_is_numpys(opened: Archive, index: Any) -> None:
    whole = np.stack(list(opened.layers["conv1"]))
    expected = whole[list(index) if isinstance(index, range) else index]
    found = opened.layers["conv1"][index]
    assert found.shape == expected.shape
    assert found.dtype == whole.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (7, "index 7 is out of range for axis 0 with size 7"),
        ((0, 4), "index 4 is out of range for axis 1"),
        ((0, [1, 2]), "got a list on axis 1"),
        (None, "an index takes integers, slices and `...`"),
        (True, "an index takes integers"),
        (1.5, "got a float on axis 0"),
        ("conv1", "got a str on axis 0"),
        ((0, 0, 0, 0, 0), "too many indices: 5 for the 4 axes"),
        ((..., ...), "one `...` only"),
        ([[0, 1]], r"shape \(1, 2\)"),
        ([0.5], "row numbers or a mask"),
        ([True, False], "a mask needs 7 values, got 2"),
        (slice("a"), "slice"),
    ],
)
def test_4_anything_else_is_refused_in_one_line(opened: Archive, index: Any, text: str) -> None:
    with pytest.raises(IndexError, match=text) as caught:
        opened.layers["conv1"][index]
    assert "\n" not in str(caught.value)


def test_4_only_what_is_asked_for_is_read(opened: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = Archive.read_rows
    monkeypatch.setattr(
        Archive, "read_rows",
        lambda *given: asked.append((found := real(*given)).size) or found,
    )  # fmt: skip
    assert opened.layers["conv1"][[0, 5, 6], 2, 3:5].shape == (3, 2, 16)
    assert sum(asked) == 3 * 2 * 16


# ---------------------------------------------------------------- 5: reductions


def test_5_a_pattern_that_matches_no_layer_is_an_error(tmp_path: Path, run: Run) -> None:
    with pytest.raises(ConfigError, match=r"'layer9' matches none .*(choose from|did you mean)"):
        extract(tiny_extraction(tmp_path / "a", reduction=PerLayer(layers={"layer9": "none"})))
    assert not (tmp_path / "a").exists()
    code, _, err = run("plan", "model=tiny", "dataset=synthetic", "reduction=per_layer",
                       "reduction.layers={conv3: spatial_mean}")  # fmt: skip
    assert code == 2
    assert "reduction.layers: 'conv3' matches none of the selected layers; did you mean" in err


def test_5_channels_are_required(run: Run) -> None:
    code, _, err = run("extract", "model=tiny", "dataset=synthetic", "reduction=channels")
    assert code == 2
    assert "reduction.channels: is required" in err


@pytest.fixture(scope="module")
def vit_archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return archives of a small vision transformer, whole and as spatial means."""
    place = tmp_path_factory.mktemp("vit")
    for name, reduction in (("whole", {}), ("means", {"reduction": SpatialMean()})):
        extract(small_vit(place / name, **reduction))
    return place / "whole", place / "means"


def small_vit(path: Path, **changes: object) -> Any:
    """Return an extraction of a vision transformer with one class token."""
    model = TimmModel(
        name="vit_tiny_patch16_224", weights=None, arguments={"img_size": 64, "depth": 2},
        transform=AT_64,
    )  # fmt: skip
    layers = LayerSelector(include=("blocks.0", "blocks.1"))
    data = Synthetic(samples=3, height=64, width=64)
    return tiny_extraction(path, model=model, layers=layers, dataset=data, **changes)


def test_5_means_and_statistics_leave_the_class_token_out(
    vit_archives: tuple[Path, Path],
) -> None:
    with Archive.open(vit_archives[0]) as whole, Archive.open(vit_archives[1]) as means:
        layer = whole.layers["blocks.1"]
        values = layer[:].astype(np.float64)[:, 1:]  # (sample, token, channel)
        np.testing.assert_allclose(layer.sample_mean, values.mean(1), rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(layer.sample_max, values.max(1).astype(np.float32))
        np.testing.assert_allclose(
            means.layers["blocks.1"][:], values.mean(1), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(layer.statistics["mean"], values.mean((0, 1)), rtol=1e-4,
                                   atol=1e-6)  # fmt: skip
        assert (layer.statistics["count"] == values.shape[0] * values.shape[1]).all()
    for path in vit_archives:
        with h5py.File(path / "archive.h5") as file:
            stored = file["layers/blocks.1/activation"].attrs["positions"]
        assert stored == "grid, without 1 prefix token"
        text = describe(archive_facts(path), as_json=False)
        assert "(means and statistics over the grid, without 1 prefix token)" in text


def test_5_a_class_token_that_is_not_finite_is_still_counted(tmp_path: Path) -> None:
    from pipeline.archive.verify import verify

    @dataclass(frozen=True, kw_only=True)
    class Sick(ModelSource):
        def build(self, seed: int) -> Built:
            built = TimmModel(
                name="vit_tiny_patch16_224", weights=None, arguments={"img_size": 64, "depth": 1}
            ).build(seed)
            built.module.norm_pre.register_forward_hook(
                lambda _m, _a, tokens: tokens.index_fill(1, torch.tensor(0), torch.inf)
            )
            return built

    config = small_vit(tmp_path / "a")
    values = {
        "model": Sick(name="sick", transform=AT_64),
        "layers": LayerSelector(include=("norm_pre",)),
    }
    extract(replace(config, **values))
    assert verify(tmp_path / "a")["nonfinite"] == {"norm_pre": 3 * 192}
    half = {**values, "storage": Storage(dtype=StoredType.FLOAT16), "archive": f"{tmp_path}/b",
            "on_nonfinite": OnNonfinite.RAISE}  # fmt: skip
    with pytest.raises(LayerError, match="NaN or infinite"):
        extract(replace(config, **half))


def test_5_a_large_class_token_does_not_overflow_silently(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Large(ModelSource):
        def build(self, seed: int) -> Built:
            built = TimmModel(
                name="vit_tiny_patch16_224", weights=None, arguments={"img_size": 64, "depth": 1}
            ).build(seed)
            built.module.norm_pre.register_forward_hook(
                lambda _m, _a, tokens: tokens.index_fill(1, torch.tensor(0), 1e6)
            )
            return built

    config = replace(
        small_vit(tmp_path / "a"), model=Large(name="large", transform=AT_64),
        layers=LayerSelector(include=("norm_pre",)), storage=Storage(dtype=StoredType.FLOAT16),
    )  # fmt: skip
    with pytest.raises(LayerError, match="float16 ends at"):
        extract(config)


# ---------------------------------------------------------------- 6: pack


def everything(path: Path) -> dict[str, Any]:
    """Return every dataset's values, type, filters and attributes, and every group's attributes."""
    found: dict[str, Any] = {}

    def look(name: str, item: h5py.Dataset | h5py.Group) -> None:
        skip = ("REFERENCE_LIST", "DIMENSION_LIST")
        attributes = {k: np.asarray(v).tolist() for k, v in item.attrs.items() if k not in skip}
        found[name] = attributes
        if isinstance(item, h5py.Dataset):
            scales = [[scale.name for scale in dim.values()] for dim in item.dims]
            texts = item.dtype.kind == "O"
            values = np.asarray(item[()]).tolist() if texts else item[()].tobytes()
            found[name] = (attributes, item.dtype, item.shape, values, scales)

    with h5py.File(path) as file:
        look("/", file)
        file.visititems(look)
    return found


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
@pytest.mark.filterwarnings("ignore:.*float16.*")
def test_6_a_packed_archive_holds_all_that_the_original_holds(tmp_path: Path, codec: str) -> None:
    storage = Storage(dtype=StoredType.FLOAT16, codec=codec, shard_samples=3)  # type: ignore[arg-type]
    extract(tiny_extraction(tmp_path / "a", storage=storage))
    with Archive.open(tmp_path / "a") as archive:
        pack(archive, tmp_path / "packed.h5")
        assert archive.layers["conv1"].rounding is not None
    assert everything(tmp_path / "packed.h5") == everything(tmp_path / "a" / "archive.h5")
    with h5py.File(tmp_path / "packed.h5") as packed:
        assert "max_relative_error" in packed["layers/conv1/activation"].attrs
        filters = packed["layers/conv1/activation"].id.get_create_plist()
        assert (filters.get_nfilters() == 2) == (codec != "none")  # shuffled and compressed
        stored = json.loads(packed["manifest"].asstr()[()])
        assert stored["layers"][0]["codec"] == codec


# ---------------------------------------------------------------- 7: state dicts


def round_trip(name: str, ending: str, folder: Path) -> None:
    """Save a torchvision model's state dict and load it from its path."""
    from safetensors.torch import save_file
    from torchvision import models

    arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    backbone = {"weights_backbone": None} if any(
        part in name for part in ("rcnn", "retinanet", "fcos", "ssd", "deeplab", "fcn", "lraspp")
    ) else {}  # fmt: skip
    torch.manual_seed(1)
    module = models.get_model(name, weights=None, **arguments, **backbone)
    path = folder / f"w{ending}"
    state = module.state_dict()
    if ending == ".safetensors":
        save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    loaded = TorchvisionModel(name=name, weights=str(path), arguments=arguments).load()
    for key, value in loaded.module.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0, equal_nan=True)
    path.unlink()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_7_state_dicts_keep_their_versions(tmp_path: Path, ending: str) -> None:
    round_trip("mnasnet0_5", ending, tmp_path)
    round_trip("shufflenet_v2_x0_5", ending, tmp_path)


@pytest.mark.broad
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.filterwarnings("ignore")
def test_7_every_torchvision_models_own_state_dict_loads(tmp_path: Path, ending: str) -> None:
    from torchvision import models

    failed = {}
    for name in models.list_models():
        if name.startswith("quantized_"):
            continue  # not floating-point models: their state dicts hold packed objects
        try:
            round_trip(name, ending, tmp_path)
        except Exception as error:  # noqa: BLE001 - all of them are shown at once
            failed[name] = f"{type(error).__name__}: {error}"
    assert not failed


# ---------------------------------------------------------------- 8: skipped samples


@dataclass(frozen=True, kw_only=True)
class Skipping(ModelSource):
    """A model that cannot stand black images: it returns huge values, or fails."""

    fails: ClassVar[bool] = False

    def build(self, seed: int) -> Built:
        module = tiny_network()

        def before(_module: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            black = (given[0] == given[0].amin()).all(dim=(1, 2, 3))
            if Skipping.fails and (given[0].flatten(1).std(dim=1) == 0).any():
                raise ZeroDivisionError("a black image")
            scale = torch.where(given[0].flatten(1).std(dim=1) == 0, torch.inf, 1.0)
            return (given[0] * scale.view(-1, 1, 1, 1) + 0 * black.float().view(-1, 1, 1, 1),)

        module.register_forward_pre_hook(before)
        transform = Transform(resize=(16,), crop=(16,), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        return Built(module=module, transform=transform)


@pytest.mark.parametrize("fails", [False, True])
def test_8_skipped_samples_influence_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(Skipping, "fails", fails)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        Image.fromarray(photo(number)).save(photos / f"{number}.png")
    changes = {
        "model": Skipping(name="skipping"), "dataset": ImageFolder(root=str(photos)),
        "storage": Storage(dtype=StoredType.FLOAT16), "on_nonfinite": OnNonfinite.RAISE,
        "loader": Loader(batch_size=2, num_workers=0), "on_error": OnError.SKIP,
    }  # fmt: skip
    extract(tiny_extraction(tmp_path / "good", **changes))
    for number in (1, 2, 3):  # one of a batch, and a whole batch
        (photos / f"{number}.png").write_bytes(b"no image")
    made = extract(tiny_extraction(tmp_path / "bad", **changes))
    assert made.skipped == 3
    with Archive.open(tmp_path / "good") as good, Archive.open(tmp_path / "bad") as bad:
        for name, layer in bad.layers.items():
            for row in (0, 4, 5):
                np.testing.assert_array_equal(layer[row], good.layers[name][row])
            assert np.isnan(layer[1:4].astype(np.float32)).all()
            assert not bad.image(2).any()
            assert layer.rounding is not None
            assert layer.rounding <= 2**-11
            assert layer.statistics["nonfinite_count"].sum() == 0
