"""An archive is of one model and one set of images: what has changed is noticed."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.info import archive_facts, describe
from pipeline.common.errors import ConfigError
from pipeline.datasets.base import ImageDataset
from pipeline.datasets.image_folder import ImageFolder
from pipeline.datasets.samples import Images, Sample
from pipeline.datasets.sequence import SequenceImages
from pipeline.datasets.torchvision import TorchvisionDataset
from pipeline.extraction import environment
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.extraction.model_fingerprint import fingerprint_of
from pipeline.extraction.settings import Storage
from pipeline.models.base import ModelBundle, ModelSource
from pipeline.models.tiny import TinyModel, tiny_network
from pipeline.models.transforms import Transform, TransformOverride
from tests.conftest import REPOSITORY, Run, photo, tiny_extraction

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


def own_model(folder: Path, factor: float, name: str) -> str:
    """Write a module with a model; every factor needs a name of its own (imports are kept)."""
    (folder / f"{name}.py").write_text(NET.format(factor=factor))
    return f"{name}.Net"


def test_an_edited_forward_is_noticed(
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
    own_model(tmp_path, 2.25, "stale_net")  # of another size: bytecode has times in seconds
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    del sys.modules["stale_net"]
    import importlib

    importlib.invalidate_caches()
    code, _, err = run("extract", *common)
    assert code == 2
    assert "model: act returns different values for the same image; its code has changed" in err
    assert err.count("\n") == 1


def test_the_fingerprint_of_activations_does_not_depend_on_threads() -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(0.1, 1, (1, 64, 56, 56))).float()
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(fingerprint_of(values))
    torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
    flat = values.double().numpy().ravel()
    assert found[0]["largest"] == np.abs(flat).max()
    np.testing.assert_allclose([found[0]["mean"], found[0]["std"]], [flat.mean(), flat.std()])
    assert found[0]["values"][-1] == pytest.approx(flat[-1], rel=1e-8)


def test_another_machine_may_round_differently_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    extract(tiny_extraction(tmp_path / "a"))
    real = environment.describe
    monkeypatch.setattr(environment, "describe", lambda d: real(d) | {"device": "another CPU"})
    monkeypatch.setattr(TinyModel, "build", scaled(TinyModel.build, 1 + 1e-5))
    with caplog.at_level(logging.WARNING):
        assert extract(tiny_extraction(tmp_path / "a")).written == 0
    assert "activations differ by rounding" in caplog.text
    monkeypatch.setattr(TinyModel, "build", scaled(TinyModel.build, 1.01))
    with pytest.raises(ConfigError, match=r"conv1 .*returns different values"):
        extract(tiny_extraction(tmp_path / "a"))
    monkeypatch.undo()
    monkeypatch.setattr(TinyModel, "build", scaled(TinyModel.build, 1 + 1e-5))
    with pytest.raises(ConfigError, match=r"conv1 .*returns different values"):  # the same machine
        extract(tiny_extraction(tmp_path / "a"))


def scaled(build: Callable[..., ModelBundle], factor: float) -> Callable[..., ModelBundle]:
    """Return a build function whose model's first layer is scaled by a factor."""

    def changed(source: TinyModel, seed: int) -> ModelBundle:
        built = build(source, seed)
        built.module.conv1.register_forward_hook(lambda _m, _a, output: output * factor)
        return built

    return changed


@pytest.mark.slow
def test_a_sweep_does_not_serve_an_edited_model(
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
    assert all("returns different values" in status["error"] for status in failed)


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


def test_images_that_changed_without_a_digest_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.datasets.base.content_digest", lambda _s: None)
    monkeypatch.setattr("pipeline.extraction.plan.content_digest", lambda _s: None)
    extract(tiny_extraction(tmp_path / "a", dataset=MovingDataset()))
    monkeypatch.setattr(Moving, "shift", 7)
    with pytest.raises(ConfigError, match=r"sample 0 \(0\) now decodes to different pixels"):
        extract(tiny_extraction(tmp_path / "a", dataset=MovingDataset()))


def test_torchvision_datasets_are_told_apart_by_their_content(tmp_path: Path) -> None:
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


def test_versions_and_pixels_are_recorded(opened: Archive) -> None:
    import hashlib

    assert "transformers" in environment.VALUE_AFFECTING
    installed = find_spec("transformers") is not None
    assert ("transformers" in opened.manifest.environment["versions"]) == installed
    digests = [sample.pixels_sha256 for sample in opened.samples]
    stored = [np.ascontiguousarray(opened.image(i).transpose(2, 0, 1)) for i in range(7)]
    assert digests == [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in stored]
    whole = hashlib.sha256("".join(digests).encode()).hexdigest()
    assert opened.complete.pixels_sha256 == whole
    assert whole[:16] in describe(archive_facts(opened.path))


@dataclass(frozen=True, kw_only=True)
class Skipping(ModelSource):
    """A model that cannot stand black images: it returns huge values, or fails."""

    fails: ClassVar[bool] = False

    def build(self, seed: int) -> ModelBundle:
        module = tiny_network()

        def before(_module: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            black = (given[0] == given[0].amin()).all(dim=(1, 2, 3))
            if Skipping.fails and (given[0].flatten(1).std(dim=1) == 0).any():
                raise ZeroDivisionError("a black image")
            scale = torch.where(given[0].flatten(1).std(dim=1) == 0, torch.inf, 1.0)
            return (given[0] * scale.view(-1, 1, 1, 1) + 0 * black.float().view(-1, 1, 1, 1),)

        module.register_forward_pre_hook(before)
        transform = Transform(resize=(16,), crop=(16,), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        return ModelBundle(module=module, transform=transform)


@pytest.mark.parametrize("fails", [False, True])
def test_skipped_samples_influence_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(Skipping, "fails", fails)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        Image.fromarray(photo(number)).save(photos / f"{number}.png")
    changes = {
        "model": Skipping(name="skipping"), "dataset": ImageFolder(root=str(photos)),
        "storage": Storage(dtype="float16"), "on_nonfinite": "raise",
        "loader": Loader(batch_size=2, num_workers=0), "on_error": "skip",
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


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="not a git checkout")
def test_the_revision_of_a_checkout_is_recorded(opened: Archive) -> None:
    recorded = opened.manifest.environment["revision"].removesuffix("-dirty")
    assert len(recorded) == 40
    subprocess.run(
        ["git", "-C", str(REPOSITORY), "cat-file", "-e", f"{recorded}^{{commit}}"], check=True
    )
