"""The command line, as people use it.

The main job, layers, info, render, and every kind of mistake.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.cli import main as cli
from pipeline.cli.overrides import as_meant
from pipeline.config.config_docs import conf_folder
from pipeline.rendering.file_names import sample_stem
from tests.conftest import REPOSITORY, Run
from tests.helpers.tiny_words import TINY


def test_the_main_job_makes_archive_pictures_and_gallery(run: Run, tmp_path: Path) -> None:
    code, out, err = run("run", "device=cpu")
    assert code == 0, err
    folder = tmp_path / "run"
    for place in ("archive", "pictures", "gallery/index.html"):
        assert str(folder / place) in out
    with Archive.open(folder / "archive") as archive:
        assert len(archive) == 10
        assert archive.complete.skipped == 0
        layers = list(archive.layers)
        for sample in archive.samples:
            stem = sample_stem(sample.index, sample.id)
            for kind in ("mean_map", "pca", "overview"):
                with Image.open(folder / "pictures" / kind / f"{stem}.png") as picture:
                    assert picture.size[0] > 500
            for layer in layers:
                assert (folder / "pictures" / "grid" / layer / f"{stem}.png").is_file()
            assert (folder / "gallery" / "samples" / f"{stem}.html").is_file()
    assert layers == ["conv_stem", "blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"]
    config = (folder / ".hydra" / "config.yaml").read_text()
    assert "tf_efficientnet_lite0" in config


@pytest.mark.slow
def test_a_folder_of_mixed_photos_with_all_convolutions_of_vgg16(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    code, _, err = run(
        "run",
        "model=vgg16",
        "model.weights=null",
        "layers=convs",
        "dataset=image_folder",
        f"dataset.root={photos}",
        "model.transform.resize=64",
        "model.transform.crop=64",
        "renderers=[grid,mean_map]",
        "device=cpu",
    )
    assert code == 0, err
    with Archive.open(tmp_path / "run" / "archive") as archive:
        assert len(archive) == 8
        assert len(archive.layers) == 13
        assert archive.layers["features.28"].axes == ("sample", "channel", "height", "width")
        assert archive.filters["features.0"].shape == (64, 3, 3, 3)


def test_help_and_wrong_keys_are_answered_without_torch(tmp_path: Path) -> None:
    """Its import takes seconds."""
    program = (
        "import sys\n"
        "from pipeline.cli.completion import words\n"
        "from pipeline.cli.main import main\n"
        "codes = [main(line.split()) for line in ('run --help', 'layers --help', 'run --cfg job',\n"
        "         'run modle=tiny', 'run loader.batch_size=x', 'layers layers.include=[')]\n"
        "assert codes == [0, 0, 0, 2, 2, 2], codes\n"
        "assert words('run', 'loader.')\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_render_again_needs_neither_torch_nor_a_model_and_leaves_the_archive_alone(
    tiny_archive: Path, tmp_path: Path
) -> None:
    def digests() -> dict[str, str]:
        files = sorted(path for path in tiny_archive.rglob("*") if path.is_file())
        return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    before = digests()
    program = (
        "import sys\n"
        "from pipeline.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "wrong = [m for m in sys.modules if m.split('.')[0] in ('torch', 'torchvision', 'timm')\n"
        "         or m.startswith(('pipeline.models', 'pipeline.datasets', 'pipeline.capture'))]\n"
        "assert not wrong, wrong\n"
        "sys.exit(code)\n"
    )
    options = [
        "renderers.grid.max_channels=2",
        "renderers.grid.colormap=gray",
        "render.format=webp",
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-c", program, "render", f"archive={tiny_archive}", *options),
            f"hydra.run.dir={tmp_path / 'again'}",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "again" / "pictures" / "grid" / "conv1").glob("*.webp"))) == 7
    assert digests() == before


def test_render_chooses_samples(run: Run, tiny_archive: Path, tmp_path: Path) -> None:
    cases = {"a": ("2:5", 3), "b": ("[synthetic-000001,synthetic-000006]", 2)}
    for folder, (wanted, count) in cases.items():
        code, _, err = run(
            "render",
            f"archive={tiny_archive}",
            f"render.samples={wanted}",
            "renderers=pca",
            folder=folder,
        )
        assert code == 0, err
        assert len(list((tmp_path / folder / "pictures" / "pca").iterdir())) == count
    code, _, err = run("render", f"archive={tiny_archive}", "render.samples=synthetic-00001")
    assert code == 2
    assert "did you mean synthetic-0000" in err


def test_picture_formats_hold_the_same_picture(
    run: Run, tiny_archive: Path, tmp_path: Path
) -> None:
    words = (f"archive={tiny_archive}", "render.samples=0:1", "renderers=overview")
    pictures = {}
    for kind in ("png", "webp", "jpeg"):
        code, _, err = run("render", *words, f"render.format={kind}", folder=kind)
        assert code == 0, err
        (path,) = (tmp_path / kind / "pictures" / "overview").iterdir()
        assert path.suffix == f".{kind}"
        pictures[kind] = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    assert np.array_equal(pictures["webp"], pictures["png"])
    assert np.abs(pictures["jpeg"] - pictures["png"]).mean() < 3


def test_layers_lists_what_is_there_and_what_is_selected(run: Run) -> None:
    code, out, _ = run("layers", "model=tiny")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()[1:-1]] == [
        "conv1",
        "bn1",
        "relu:0",
        "conv2",
        "relu:1",
    ]
    assert "4×16×16" in out
    code, out, _ = run("layers", "model=tiny", "layers.include=[conv2]", "--all", "--json")
    rows = json.loads(out)["layers"]
    assert [row["name"] for row in rows if row["selected"]] == ["conv2"]
    assert len(rows) == 7
    assert rows[3] == {
        "name": "conv2",
        "type": "Conv2d",
        "calls": 1,
        "axes": ["channel", "height", "width"],
        "shape": [3, 6, 8, 8],
        "parameters": 6 * 4 * 9 + 6,
        "bytes_per_sample": 6 * 8 * 8 * 4,
        "selected": True,
    }


def test_info_describes_whole_and_partial_archives(run: Run, tmp_path: Path) -> None:
    run("extract", *TINY, "storage.shard_samples=1", "loader.batch_size=1")
    archive = tmp_path / "run" / "archive"
    code, out, _ = run("info", str(archive))
    assert code == 0
    assert out.startswith(f"{archive}: complete\n")
    assert "3 of 3 done" in out
    assert "skipped" not in out
    (archive / "COMPLETE.json").unlink()
    (archive / "shards" / "00001.h5").unlink()
    assert run("info", str(archive))[1].startswith(f"{archive}: not complete\n")
    code, out, _ = run("info", str(archive), "--json")
    facts = json.loads(out)
    assert not facts["complete"]
    assert facts["missing_shards"] == [1]
    assert facts["layers"][0]["shape"] == [3, 4, 16, 16]
    code, _, err = run("info", str(tmp_path / "nowhere"))
    assert code == 1
    assert err.count("\n") == 1


def test_failures_leave_the_traceback_in_the_log_only(run: Run, tmp_path: Path) -> None:
    code, _, err = run("render", f"archive={tmp_path / 'none'}")
    assert code == 1
    assert err.count("\n") == 1
    assert "Traceback" in (tmp_path / "run" / "featuremaps.log").read_text()


def test_skipped_samples_end_with_exit_code_4(run: Run, photos: Path) -> None:
    (photos / "broken.png").write_bytes(b"\x89PNG")
    data = (
        "model=tiny",
        "device=cpu",
        "dataset=flat_folder",
        f"dataset.root={photos}",
        "renderers=mean_map",
    )
    assert run("run", *data)[0] == 1
    code, out, _ = run("run", *data, "on_error=skip", folder="skipping")
    assert code == 4
    assert "gallery" in out


def test_the_same_command_goes_on_in_the_same_run_folder(run: Run, tmp_path: Path) -> None:
    assert run("extract", *TINY)[0] == 0
    shard = tmp_path / "run" / "archive" / "shards" / "00000.h5"
    before = shard.stat().st_mtime_ns
    code, _, err = run("extract", *TINY)
    assert code == 0
    assert "all shards are written already" in err
    assert shard.stat().st_mtime_ns == before
    code, _, err = run("extract", *TINY, "seed=1")
    assert code == 2
    assert "seed: 0 → 1" in err


def test_a_plain_string_is_one_layer(run: Run, tmp_path: Path) -> None:
    assert run("extract", *TINY, "layers.include=conv2", "layers.aliases={conv2:second}")[0] == 0
    with Archive.open(tmp_path / "run" / "archive") as archive:
        assert list(archive.layers) == ["conv2"]
        assert archive.layer("second").alias == "second"


def test_help_is_useful_and_its_keys_exist(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from pipeline.cli.help import KEYS
    from pipeline.config import hydra_schema as config

    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    assert "featuremaps run" in capfd.readouterr().out
    for name in ("run", "extract", "render", "layers"):
        code, out, _ = run(name, "--help")
        assert code == 0
        assert "Keys" in out
        assert max(map(len, out.splitlines())) < 120
    config.register("run")
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("run", ["dataset=image_folder", "archive=x"], return_hydra_config=True)
    for key in KEYS:
        marker = object()
        OmegaConf.set_struct(composed, False)
        assert (
            OmegaConf.select(composed, key, default=marker, throw_on_missing=False) is not marker
        ), key


@pytest.mark.slow
def test_cfg_job_prints_the_whole_configuration(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "run", "--cfg", "job", "model=resnet18"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    assert "layer4" in done.stdout
    assert "batch_size: null" in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_home_folder_is_understood_in_values(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    words = ["model=tiny", "dataset=image_folder", f"dataset.root=~/{photos.name}", "device=cpu"]
    assert run("extract", *words, "archive=~/found")[0] == 0
    assert (photos.parent / "found" / "COMPLETE.json").is_file()
    code, _, err = run("plan", *words, "layers.include=[conv1]")
    assert code == 0, err
    assert as_meant(["a=[~/x,~/y]", "~renderers.pca", "b='~/z'", "c=x~/"]) == [
        f"a=[{photos.parent}/x,{photos.parent}/y]", "~renderers.pca", "b='~/z'", "c='x~/'"
    ]  # fmt: skip


@pytest.mark.parametrize("command", [
    "info ARCHIVE --json", *(pytest.param(words, marks=pytest.mark.slow)
                             for words in ("info ARCHIVE", "cite ARCHIVE", "plan model=tiny")),
])  # fmt: skip
def test_terminals_without_utf_8(command: str, tiny_archive: Path, tmp_path: Path) -> None:
    words = command.replace("ARCHIVE", str(tiny_archive)).split()
    texts = []
    for encoding in ("utf-8", "ascii", "latin-1"):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *words], capture_output=True, check=False,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        text = done.stdout.decode(encoding)
        texts.append(re.sub(r"(?m)^(free disk|peak memory|time) .*", "", text))  # vary with others
    full, *others = texts
    assert others == [full.encode(e, "backslashreplace").decode(e) for e in ("ascii", "latin-1")]
    if "--json" in words:
        assert json.loads(texts[1]) == json.loads(full)


@pytest.mark.slow
def test_the_log_of_a_run_is_utf_8(photos: Path, tmp_path: Path) -> None:
    (photos / "cats" / "→.png").write_bytes(b"")
    words = ["run", "model=tiny", "dataset=image_folder", f"dataset.root={photos}", "device=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words, "hydra.run.dir=run"], check=False,
        capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "LC_ALL": "C", "PYTHONUTF8": "0",
                          "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (log,) = (tmp_path / "run").glob("*.log")
    assert "→.png" in log.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("PYTHONOPTIMIZE", "2", "run --help"), ("MPLBACKEND", "nonsense", "similarity ARCHIVE")],
)
def test_environments(
    name: str, value: str, words: str, tiny_archive: Path, tmp_path: Path
) -> None:
    program = "from pipeline.cli.main import entry; entry()"
    command = [sys.executable, "-c", program, *words.replace("ARCHIVE", str(tiny_archive)).split()]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), name: value}
    done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
