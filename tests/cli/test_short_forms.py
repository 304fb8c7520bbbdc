"""Short forms of overrides: done where the meaning is plain, else answered with the command."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from pipeline.archive.reading.archive import Archive
from pipeline.cli.main import main
from pipeline.cli.shortcuts import spelled_out
from pipeline.common.errors import ConfigError
from tests.conftest import Run


@pytest.fixture
def folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `photos`, an archive's folder `sweep` of two runs, and files."""
    home = photos.parent
    for name in ("a.tar", "b.tar", "list.csv", "photos/shot.png"):
        (home / name).write_bytes(b"")
    for name in ("one", "two"):
        (home / "sweep" / "archives" / name).mkdir(parents=True)
        (home / "sweep" / "archives" / name / "manifest.json").write_text("{}")
    (home / "conf" / "model" / "mine").mkdir(parents=True)
    (home / "conf" / "model" / "mine" / "net.yaml").write_text("")
    (home / "mine").mkdir()
    (home / "mine" / "config.json").write_text('{"model_type": "vit"}')
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize(
    ("root", "typed", "meant"),
    [
        # A key without the choice that has it.
        ("run", "dataset.root=photos", "dataset=image_folder dataset.root=photos"),
        ("run", "dataset.path=list.csv", "dataset=csv dataset.path=list.csv"),
        ("run", "dataset.shards=a.tar", "dataset=webdataset dataset.shards=a.tar"),
        ("run", "dataset.samples=4", "dataset=synthetic dataset.samples=4"),
        ("run", "model.class_path=n.py:N", "model=checkpoint model.class_path=n.py:N"),
        ("run", "model.repo=a/b model.name=c", "model=hub model.repo=a/b model.name=c"),
        ("run", "reduction.height=2", "reduction=average_grid reduction.height=2"),
        ("run", "dataset.limit=3 model.weights=null", "dataset.limit=3 model.weights=null"),
        ("run", "experiment=vgg16_stages dataset.root=photos",
         "dataset=image_folder experiment=vgg16_stages dataset.root=photos"),
        # A key without its group.
        ("run", "weights=null", "model.weights=null"),
        ("run", "root=photos", "dataset=image_folder dataset.root=photos"),
        ("run", "limit=3 batch_size=2", "dataset.limit=3 loader.batch_size=2"),
        ("run", "dtype=float16 resize=64", "storage.dtype=float16 model.transform.resize=64"),
        ("run", "grid.max_channels=4", "renderers.grid.max_channels=4"),
        ("render", "format=webp", "render.format=webp"),
        # Flags, and a key and its value as two words.
        ("run", "--model resnet18", "model=resnet18"),
        ("run", "--batch-size=8 --device cpu", "loader.batch_size=8 device=cpu"),
        ("run", "--resume --cfg job", "resume=true --cfg job"),
        ("run", "model = tiny limit= 3", "model=tiny dataset.limit=3"),
        ("run", "model tiny", "model=tiny"),
        ("run", "-cd photos seed=1", "-cd photos seed=1"),
        # Words.
        ("extract", "resnet18", "model=resnet18"),
        ("extract", "vgg16_stages", "experiment=vgg16_stages"),
        ("extract", "tiny convs synthetic", "model=tiny layers=convs dataset=synthetic"),
        ("extract", "tiny photos",
         "dataset=image_folder model=tiny dataset.root=photos"),
        ("extract", "list.csv", "dataset=csv dataset.path=list.csv"),
        ("render", "some/run", "archive=some/run"),
        ("render", "some/run pca grid", "archive=some/run renderers=[pca,grid]"),
        ("render", "sweep hydra.run.dir=out",
         "-m archive=sweep/archives/one,sweep/archives/two hydra.sweep.dir=out"),
        # Layers.
        ("run", "layers=layer4", "layers.include=[layer4]"),
        ("run", "layers=[layer1,layer2]", "layers.include=[layer1,layer2]"),
        ("run", "-m layers=layer1,layer2", "-m layers.include=[layer1],[layer2]"),
        ("run", "layers=features.0", "layers.include=[features.0]"),
        ("run", "layers=convs", "layers=convs"),
        ("run", "-m layers=convs,blocks", "-m layers=convs,blocks"),
        # Models.
        ("run", "model=timm/resnet50", "model=timm model.name=timm/resnet50"),
        ("run", "model=resnet50.a1_in1k", "model=timm model.name=resnet50.a1_in1k"),
        ("run", "model=vit_small_patch16_224", "model=timm model.name=vit_small_patch16_224"),
        ("run", "model=vit_b_32", "model=torchvision model.name=vit_b_32"),
        ("run", "model=facebook/dinov2-small",
         "model=transformers model.name=facebook/dinov2-small"),
        ("run", "model=./mine", "model=transformers model.name=./mine"),
        ("run", "model=net.py:Net", "model=checkpoint model.class_path=net.py:Net"),
        ("run", "model=torchvision.models.vgg13", "model=torchvision model.name=vgg13"),
        ("run", "model.name=squeezenet1_1", "model=torchvision model.name=squeezenet1_1"),
        # Left alone.
        ("run", "+mine=x ~renderers.pca", "+mine=x ~renderers.pca"),
        ("run", "hydra.job.name=a", "hydra.job.name=a"),
        ("run", "-m model=glob(resnet*)", "-m model=glob(resnet*)"),
        ("run", "layers='convs'", "layers='convs'"),
        ("run", "-cd conf model=mine/net", "-cd conf model=mine/net"),
    ],
)  # fmt: skip
def test_what_is_plain_is_spelled_out(folder: Path, root: str, typed: str, meant: str) -> None:
    assert spelled_out(typed.split(), root) == meant.split()


@pytest.mark.parametrize(
    ("root", "typed", "text"),
    [
        ("run", "name=x", "use model.name=… or dataset.name=…"),
        ("run", "dataset.name=x", "add dataset=huggingface or dataset=torchvision"),
        ("run", "data=photos", "use dataset.root=photos"),
        ("run", "gpu=0", "use device=cuda"),
        ("run", "pretrained=false", "use model.weights=null"),
        ("run", "out=x", "use hydra.run.dir=x"),
        ("run", "wieghts=null", "did you mean model.weights?"),
        ("run", "photos/shot.png", "dataset=flat_folder dataset.root=photos"),
        ("run", "sweep/archives/one", "featuremaps render archive=sweep/archives/one"),
        ("run", "layers=convs,layer2", "convs is a preset and layer2 is a layer"),
        ("run", "layers=cons", "unknown preset 'cons'; did you mean convs?"),
        ("layers", "model=densenet169 weights=null",
         "featuremaps layers model=torchvision model.name=densenet169 model.weights=null or "
         "featuremaps layers model=timm model.name=densenet169 model.weights=null"),
        ("run", "model=dinov2_vits14",
         "featuremaps run model=hub model.repo=facebookresearch/dinov2 model.name=dinov2_vits14 "
         "model.trust=true or, from timm, featuremaps run model=timm "
         "model.name=vit_small_patch14_dinov2"),
        ("run", "model=clip",
         "featuremaps run model=transformers model.name=openai/clip-vit-base-patch32"),
        ("run", "model=ViT-B/32", "model.name=openai/clip-vit-base-patch32"),
        ("run", "model=vgg", "did you mean vgg11 or vgg13 or vgg16?"),
        ("run", "model=net.pth", "featuremaps run model=resnet18 model.weights=net.pth"),
        ("run", "-m model=resnet18,timm/resnet50", "not a packaged model; use featuremaps run -m "),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_answered_with_what_to_type(
    folder: Path, root: str, typed: str, text: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        spelled_out(typed.split(), "run" if root == "layers" else root, root)
    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "code", "text"),
    [
        ("layers=layer4", 2, "to extract and render, use: featuremaps run layers=layer4"),
        ("--model resnet18 weights=null", 2, "featuremaps run --model resnet18 weights=null"),
        ("resnet18", 2, "to extract and render, use: featuremaps run resnet18"),
        ("photos", 2, "to extract and render, use: featuremaps run photos"),
        ("sweep", 2, "for an archive, use: featuremaps info sweep"),
        ("export sweep z.npy", 2, "use featuremaps export sweep z_npy --to npy"),
        ("export sweep z.h5", 2, "use featuremaps pack sweep z.h5"),
        ("serve", 2, "no finished run below outputs/"),
        ("extract model=tiny hydra.launcher.ray.init.num_cpus=1", 2,
         "hydra.launcher.ray: no such key; use it with launch=ray"),
        ("plan model=resnet18,vgg11", 2, "featuremaps extract -m model=resnet18,vgg11"),
        ("plan model=tiny dataset=synthetic dataset.root=photos", 2,
         "dataset.root: no such key; use it with dataset=csv or dataset=flat_folder or "),
        ("extract experiment=vgg16_stages", 2, "use featuremaps run"),
        ("plan model=tiny device=gpu", 2, "device: cuda is not available"),
        ("plan model=timm model.name=vit_small weights=null", 2, "did you mean vit_small_patch"),
    ],
)  # fmt: skip
def test_first_tries_of_commands(
    folder: Path, capfd: pytest.CaptureFixture[str], typed: str, code: int, text: str
) -> None:
    if "gpu" in typed:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available() or torch.backends.mps.is_available():
            pytest.skip("there is a GPU")
    assert main(shlex.split(typed)) == code
    assert text in capfd.readouterr().err.splitlines()[-1]


def test_a_short_command_line_does_its_work(run: Run, photos: Path, tmp_path: Path) -> None:
    code, _, err = run("extract", "tiny", str(photos / "cats"), "--device", "cpu", "limit=2")
    assert code == 0, err
    assert "featuremaps: interpreted as: featuremaps extract dataset=image_folder model=tiny" in err
    with Archive.open(tmp_path / "run") as archive:
        assert [sample.id for sample in archive.samples] == ["cmyk.jpg", "colour.jpg"]
        values = archive.layers["conv1"][:]
    words = ("model=tiny", "dataset=image_folder", f"dataset.root={photos / 'cats'}", "device=cpu",
             "dataset.limit=2")  # fmt: skip
    assert run("extract", *words, folder="whole")[0] == 0
    with Archive.open(tmp_path / "whole") as archive:
        np.testing.assert_array_equal(values, archive.layers["conv1"][:])


def test_plan_takes_what_run_takes(run: Run) -> None:
    words = ("experiment=resnet18_mean", "model.weights=null", "renderers.grid.max_channels=4")
    code, out, err = run("plan", *words)
    assert code == 0, err
    assert "layer3.0.conv1" in out
