"""Mistakes on the command line are one line with the nearest valid name."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

from pipeline.cli.main import main
from pipeline.config.error_messages import explain
from tests.conftest import Run
from tests.helpers.tiny_words import TINY

slow = partial(pytest.param, marks=pytest.mark.slow)
"""A case of the same kind as another one."""


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("run loader.batch_size=0", "loader.batch_size: must be at least 1, got 0"),
        slow("run loader.batch_size=many", "loader.batch_size: must be an integer, got 'many'"),
        ("run loader.batch_size=None", "loader.batch_size=None: use loader.batch_size=null"),
        ("run dataset.limit=true", "dataset.limit: must be a number, got true"),
        slow(
            "run reduction=channels reduction.channels=[true]",
            "reduction.channels[0]: must be a number, got true",
        ),
        slow("run renderers.mean_map.overlay=true", "mean_map.overlay: must be a number, got true"),
        slow("run model.transform.resize=true", "transform.resize[0]: must be a number, got true"),
        (
            "run reduction=average_grid reduction.width=9223372036854775807",
            "reduction.width: must be less than or equal",
        ),
        ("run model.transform.crop=10000000000", "[height, width], up to 1,000,000, got [1000"),
        slow("run archive=None", "archive=None: use archive=null"),
        ("extract archive=", "archive: is empty; set it to a folder"),
        ("run hydra.searchpath=[s3://b]", "hydra.searchpath=[s3://b]: use file://FOLDER or"),
        ("extract hydra.run.dir=", "no folder is given; use hydra.run.dir=. for the current"),
        slow("extract -m hydra.sweep.dir= seed=1,2", "hydra.sweep.dir=: no folder is given"),
        slow("render archive=", "archive: is required"),
        ("run layers.aliases=x", "layers.aliases: must be a mapping (key: value), got 'x'"),
        ("run model.transform=x", "model.transform: must be a mapping (key: value), got 'x'"),
        slow("run model.axes=[x]", "model.axes: must be a mapping (key: value), got '[x]'"),
        slow("run loader.decoding=[x]", "decoding: has a list where a mapping (key: value) is"),
        ("run model.token_grid=3", "model.token_grid: must be a list, got 3"),
        slow("run model.token_grid=[3]", "model.token_grid: needs more values, got [3]"),
        slow("run model.token_grid=[3,4,5]", "token_grid: takes at most 2 values, got [3, 4, 5]"),
        ("run +seed=1", "+seed: the key exists already; remove the +"),
        slow("run loader.batch_size=1.5", "loader.batch_size: must be an integer, got 1.5"),
        slow("run resume=maybe", "resume: must be true or false, got 'maybe'"),
        slow("run precision=fp8", "precision: unknown value 'fp8'; choose from: float32, bfloat16"),
        ("run -m hydra.launcher=foo seed=1,2", "no such key; use hydra/launcher=foo"),
        (
            "run hydra.run=outputs/a",
            "hydra.run=outputs/a: no such key; use hydra.run.dir=outputs/a",
        ),
        slow("run hydra/launcher=foo", "hydra/launcher: unknown choice 'foo'; choose from: basic"),
        ("run shard.index=3 shard.count=2", "shard: index must be in 0..count-1"),
        ("run max_errors=3", "max_errors: needs on_error=skip"),
        ("run reduction=per_layer", "reduction: layers: is empty, so no layer would be reduced"),
        ("run render.step=3", "render: step: needs render.tensorboard=FOLDER"),
        ("run renderers.pca.components=2", "renderers.pca.components: must be 1 or 3, got 2"),
        ("run renderers.grid.channels=[900]", "renderers.grid.channels: no channel 900"),
        ("run dataset=image_folder", "dataset.root: no image folder is set"),
        ("run render.format=pdf", "render.figures=[pdf]"),
        slow("run renderers.grid.max_channels=0", "renderers.grid.max_channels: must be"),
        ("run model=torchvision", "model.name: is required"),
        slow("run device=cuda:99", "device: cuda:99 is not available"),
        ("run device=abacus", "device: unknown device 'abacus'"),
        slow("run layers.include=[]", "layers: include is empty"),
        ("run layers.include=['re:(']", "is not a valid regular expression"),
        ("run model._target_=os.system", "model._target_"),
        ("run model._target_=pipeline.datasets.synthetic.Synthetic", "is not a ModelSource"),
        slow("run model._target_=subprocess.Popen", "is not a ModelSource"),
        ("run model=", "model"),
        ("run layers.include=[", "layers.include=["),
        ("run renderers=[]", "renderers: no renderer is selected"),
        slow("run model.transform.crop=[1,2,3]", "model.transform.crop: takes one positive size"),
        ("render", "archive: is required"),
        ("run loader.decoding.background=#11223344", "has an opacity; use an opaque colour"),
        ("info", "featuremaps info"),
        ("help", "unknown command 'help'; use: featuremaps --help"),
        slow("help run", "unknown command 'help'; use: featuremaps run --help"),
        ("render archive=a model=tiny", "model: this command has no such choice; remove it"),
        ("run model=tiny seed=1 =", "Could not override ''"),
        ("extract -m model=tiny seed=range(0)", "sweep: a key has no values, so there are no jobs"),
        ("compare a b --rtol nan", "argument --rtol: must be finite and not negative, got nan"),
        ("compare a b --atol -1", "argument --atol: must be finite and not negative, got -1"),
        ("reproduce a b --rtol inf", "argument --rtol: must be finite and not negative, got inf"),
        ("similarity a --measures cka,", "unknown measure ''"),
    ],
)
def test_wrong_values_name_their_place(run: Run, command: str, text: str) -> None:
    arguments = command.split()
    if arguments[0] == "run" and "model" not in command and "layers" not in command:
        arguments += TINY[:1] + TINY[-1:] * ("device" not in command)
    code, _, err = run(*arguments)
    assert code == 2, err
    *before, last = err.splitlines()
    assert last.startswith("featuremaps: error: ")
    assert text in last
    assert all(line.startswith("extract: ") for line in before)


@pytest.mark.parametrize(
    ("command", "near"),
    [
        ("run model=resnet81", "resnet18"),
        ("run model=torchvision model.weights=null model.name=densnet121", "densenet121"),
        slow("run model.wieghts=null", "weights"),
        ("run modle=resnet18", "model"),
        ("run dataset=image_foldr", "image_folder"),
        slow("run dataset.limt=3", "limit"),
        ("run layers=cons", "convs"),
        ("run layers.include=[block.0]", "blocks.0"),
        ("run layers.include=[blcks.*]", "blocks"),
        slow("run layers.types=[Conv2]", "Conv2d"),
        ("run layers.aliases={blocks.00:x}", "blocks.0"),
        slow("run loader.batchsize=3", "batch_size"),
        ("run loader.decoding.sixteen_bits=scale", "sixteen_bit"),
        slow("run loader.decoding.sixteen_bit=scal", "scale"),
        slow("run reduction=spatial_men", "spatial_mean"),
        ("run storage.dtype=float61", "float16"),
        ("run renderers=[gird]", "grid"),
        ("run ~renderers.pcb", "pca"),
        ("run renderers.grid.colums=3", "columns"),
        slow("run +renderers.grid.colums=3", "columns"),
        ("run renderers.grid.colormap=virids", "viridis"),
        slow("run renderers.grid.select=varianc", "variance"),
        slow("run render.fromat=png", "format"),
        ("run devise=cpu", "device"),
        slow("run +devise=cpu", "device"),
        slow("run precision=bfloat61", "bfloat16"),
        slow("run on_error=skp", "skip"),
        ("rnu", "run"),
        ("layers model=vgg61", "vgg16"),
        ("extract layer=convs", "layers"),
        ("render archve=x", "archive"),
    ],
)
def test_a_typo_gives_one_line_with_the_nearest_name(run: Run, command: str, near: str) -> None:
    code, out, err = run(*command.split())
    assert code == 2, err
    assert out == ""
    assert err.startswith("featuremaps: error: ")
    assert err.count("\n") == 1
    assert near in err.split(";", 1)[1]


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_folder_that_cannot_be_made_is_no_defect(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    swept = ["-m", "seed=1,2"] if kind == "sweep" else []
    place = f"hydra.{kind}.dir={tmp_path / 'file' / 'x'}"
    assert main(["run", *swept, "model=tiny", "dataset=synthetic", place]) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f"featuremaps: error: {tmp_path / 'file' / 'x'}: Not a directory")
    assert error.endswith(f"set hydra.{kind}.dir=FOLDER to write elsewhere")


@pytest.mark.parametrize("kind", ["run", pytest.param("sweep", marks=pytest.mark.slow)])
def test_a_log_that_cannot_be_written_is_named(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "out" / ("seed=1" if kind == "sweep" else "") / "featuremaps.log"
    log.mkdir(parents=True)
    swept = ["-m", "seed=1,2"] if kind == "sweep" else []
    assert main(["extract", *swept, *TINY, f"hydra.{kind}.dir={tmp_path / 'out'}"]) == 1
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"featuremaps: error: {log}: Is a directory; set hydra.{kind}.dir=FOLDER to write elsewhere"
    )


def test_paths_in_other_encodings_are_refused_in_one_line(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos.rename(os.fsdecode(os.fsencode(photos.parent) + b"/caf\xe9"))
    words = ("dataset=image_folder", "model=tiny", "device=cpu")
    expected = (2, "", "featuremaps: error: ")
    for command in (("run", f"dataset.root={folder}", *words), ("info", str(folder))):
        code, out, err = run(*command)
        assert (code, out, err[:20], err.count("\n")) == (*expected, 1)
        assert r"caf\udce9': not UTF-8; rename" in err
    monkeypatch.chdir(folder)
    assert run("run", "dataset.root=.", *words)[0] == 2


@pytest.mark.parametrize(
    ("launcher", "extra"), [("ray", "ray"), ("joblib", "joblib"), ("submitit_slurm", "slurm")]
)
def test_a_launcher_that_is_not_installed_names_its_extra(launcher: str, extra: str) -> None:
    error = MissingConfigException("", missing_cfg_file=f"hydra/launcher/{launcher}", options=["a"])
    told = f"hydra/launcher: {launcher} is not installed; run: pip install 'featuremaps[{extra}]'"
    assert str(explain(error)) == told


@pytest.mark.parametrize(
    "command", ["info", "verify", "serve", "copy PATH x", "render archive=PATH"]
)
def test_a_folder_that_is_missing_and_one_that_is_no_archive(
    command: str, run: Run, tmp_path: Path
) -> None:
    words = command if "PATH" in command else f"{command} PATH"
    for name, fact in (
        ("nope", "no such folder"),
        ("nope.h5", "no such file"),
        ("", "not an archive (it contains no manifest"),
    ):
        path = str(tmp_path / name)
        code, _, err = run(*words.replace("PATH", path).split())
        assert code == 1
        assert err.splitlines()[-1].startswith(f"featuremaps: error: {path}: {fact}")


@pytest.mark.parametrize("command", ["info", "verify", "serve", "render"])
def test_a_file_that_is_no_archive(command: str, run: Run, tmp_path: Path) -> None:
    for name, content in (("short.txt", b"hello"), ("long.h5", bytes(5000))):
        path = tmp_path / name
        path.write_bytes(content)
        code, _, err = run(command, f"archive={path}")
        assert code == 1
        assert err.splitlines()[-1] == (
            f"featuremaps: error: {path}: not an archive (it has no footer and no HDF5 header)"
        )


@pytest.mark.parametrize("words", ["info", "copy", "serve"])
def test_an_empty_path_is_not_the_current_folder(words: str, run: Run) -> None:
    code, _, err = run(words, "", *(["there"] if words == "copy" else []))
    assert code == 2
    assert "the path is empty; use . for the current folder" in err
