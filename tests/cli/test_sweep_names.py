"""Sweeps: every job has a name and a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.archive.reading.archive import Archive
from pipeline.cli.job_names import JobNames, name_jobs


@pytest.mark.slow
def test_render_draws_every_archive_of_a_sweep(
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
    assert [page.parent.parent.name for page in pages] == ["one", "two"]
    catalogue = (tmp_path / "s" / "index.html").read_text()
    assert "2 done · 7 samples drawn" in catalogue
    assert catalogue.count('<th class="sample"') == 7  # each once, with a strip of either job
    assert all(f"{job}/gallery/samples/" in catalogue for job in ("one", "two"))
    code = main(("render", "-m", archives, *draw, f"hydra.sweep.dir={tmp_path / 't'}",
                 "hydra.sweep.subdir=same"))  # fmt: skip
    err = capfd.readouterr().err
    assert code == 2
    assert "hydra.sweep.subdir: jobs are named by what varies; set hydra.sweep.dir" in err
    assert not (tmp_path / "t").exists()  # an error before either starts


def test_a_sweeps_folder_stands_for_its_archives(
    tiny_archive: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import json
    import shutil

    from pipeline.cli.main import main
    from pipeline.common.errors import ArchiveError

    for name in ("one", "two"):
        shutil.copytree(tiny_archive, tmp_path / "archives" / name)
    assert main(("info", str(tmp_path))) == 0
    assert capfd.readouterr().out.count(": complete\n") == 2
    assert main(("verify", str(tmp_path), "--json")) == 0
    assert [Path(each["path"]).name for each in json.loads(capfd.readouterr().out)] == [
        "one",
        "two",
    ]
    with pytest.raises(
        ArchiveError, match=r"the folder of a sweep; choose one of .*archives/one, "
    ):
        Archive.open(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(("render", "archive=", "hydra.run.dir=r")) == 2  # an unset variable
    assert "archive: is required" in capfd.readouterr().err
    damaged = tmp_path / "archives" / "two" / "shards" / "00001.h5"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    assert main(("verify", str(tmp_path))) == 1
    assert "two/shards/00001.h5" in capfd.readouterr().err


TINY = {"model": "tiny", "dataset": "synthetic", "layers": "blocks"}


def names(*jobs: str, previous: Sequence[JobNames] = ()) -> list[tuple[str, str]]:
    """Return the names of jobs, given as words, and of their archives."""
    found = name_jobs([job.split() for job in jobs], TINY, previous)
    return [(each.job, each.archive) for each in found]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["ckpt/epoch0.pt", "ckpt/epoch10.pt"], ["weights=epoch0", "weights=epoch10"]),
        (["a/last.pt", "b/last.pt", "null"], ["weights=a", "weights=b", "weights=null"]),
        (["/r/a/x/last.pt", "/r/b/x/last.pt"], ["weights=a", "weights=b"]),
        (["a/x.pt", "a/y.pt", "b/x.pt"], ["weights=a-x", "weights=a-y", "weights=b-x"]),
        (["m/w.pt", "m/w.safetensors"], ["weights=w.pt", "weights=w.safetensors"]),
        (["'l/epoch=9-step=1.ckpt'", "DEFAULT"], ["weights=epoch=9-step=1", "weights=DEFAULT"]),
    ],
)  # fmt: skip
def test_checkpoints_are_named_by_what_sets_their_paths_apart(
    values: list[str], expected: list[str]
) -> None:
    jobs = [f"model=checkpoint model.weights={value} seed=0" for value in values]
    assert names(*jobs) == [(name, name) for name in expected]


def test_names_hold_what_varies_and_nothing_else() -> None:
    assert names("seed=0 model=vgg11", "seed=0 model=vgg13", "seed=1 model=vgg11") == [
        (name, name) for name in ("vgg11--seed=0", "vgg13--seed=0", "vgg11--seed=1")
    ]
    draw = [
        f"seed=0 renderers.grid.colormap={c} renderers.pca.tile_size=9" for c in ("magma", "jet")
    ]
    assert names(*draw) == [("colormap=magma", "tiny"), ("colormap=jet", "tiny")]
    both = "renderers.grid.colormap={} renderers.mean_map.colormap={}"
    assert names(both.format("a", "b"), both.format("b", "a"))[0][0] == (
        "grid.colormap=a--mean_map.colormap=b"
    )
    parts = names("shard.index=0 shard.count=2", "shard.index=1 shard.count=2")
    assert parts == [("shard=0of2", "tiny"), ("shard=1of2", "tiny")]
    layers = names("layers.include=[conv1,conv2]", "layers.include=[fc]")
    assert layers[0][0] == "include=conv1+conv2"
    assert names("seed=0") == [("tiny", "tiny")]
    assert names("archive=a/archive", "archive=b/archive")[1][0] == "b"


def test_a_hash_tells_apart_only_what_would_have_one_name() -> None:
    clash = names("layers.include=conv1", "layers.include=[conv1]", "layers.include=fc")
    assert clash[2][0] == "include=fc"
    assert clash[0][0] != clash[1][0]
    for name, _ in clash[:2]:
        assert re.fullmatch(r"include=conv1-[0-9a-f]{8}", name)
    cases = names("dataset.name=Cats", "dataset.name=cats")  # one folder on macOS
    assert len({name.casefold() for name, _ in cases}) == 2
    first = name_jobs([["seed=0", "device=cpu"], ["seed=1", "device=cpu"]], TINY)
    again = names("seed=0 device=cpu", "seed=0 device=cuda", previous=first)
    assert again[0] == ("seed=0", "seed=0")  # the same job, whatever else varies now
    assert again[1] == ("device=cuda", "device=cuda")
    launched = names("launch=ray seed=0 device=cpu", "launch=ray seed=1 device=cpu", previous=first)
    assert launched == [
        ("seed=0", "seed=0"),
        ("seed=1", "seed=1"),
    ]  # another launcher, the same jobs
    other = names("seed=0 device=cuda", "seed=1 device=cuda", previous=first)
    assert all(re.fullmatch(r"seed=[01]-[0-9a-f]{8}", name) for name, _ in other)
    assert names("model=archives", "model=tiny")[0][0] != "archives"


@pytest.mark.parametrize("long", ["x" * 200, "/".join(f"folder{i}" for i in range(40))])
def test_names_are_short_safe_and_keep_their_ends(long: str) -> None:
    roots = [f"dataset.root=/{long}/{last} reduction={long[:70]}{i} seed={i}"
             for i, last in enumerate(("cats (1)", "../..", "dög's"))]  # fmt: skip
    found = [name for pair in names(*(root.replace(" (", "(") for root in roots)) for name in pair]
    assert len(set(found)) == 3
    for name in found:
        assert len(name) <= 80
        assert set(name) <= set(SAFE)
        assert name[0] not in ".-~"
    assert "cats" in found[0]
    assert "seed=0" in found[0]


def test_jobs_that_would_share_a_folder_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra.core.hydra_config import HydraConfig

    from pipeline.cli.main import main

    common = ("extract", "-m", "model=tiny", "dataset=synthetic", f"hydra.sweep.dir={tmp_path}/s")
    assert main((*common, "seed=1,1")) == 2
    assert "duplicate job" in capfd.readouterr().err
    assert main((*common, f"model.weights=glob:{tmp_path}/*.pt")) == 2
    assert (
        f"model.weights=glob:{tmp_path}/*.pt: no file or folder matches" in capfd.readouterr().err
    )
    assert main((*common, "seed=interval(0,3)")) == 2
    assert "does not support sweep type" in capfd.readouterr().err
    assert main((*common, "seed=range(0,1,0)")) == 2
    assert "must not be zero; use values with commas, range()" in capfd.readouterr().err
    assert main((*common, "seed=1,")) == 2
    assert "'seed=1,': mismatched input '<EOF>'; expected key=value" in capfd.readouterr().err
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # as in a new process
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "early.yaml").write_text(
        "# @package hydra.sweeper.params\narchive: x/${hydra:job.num}\n"
    )
    assert main((*common, "seed=0,1", "--config-dir", str(tmp_path), "sweep=early")) == 2
    assert "params.archive: its ${…} has no value before the jobs" in capfd.readouterr().err
    assert not (tmp_path / "s").exists()
    assert main(("extract", "model=tiny", "model.weights=glob:ckpt/*.pt")) == 2
    assert "add -m to sweep over them" in capfd.readouterr().err


@pytest.mark.slow
def test_a_folder_of_checkpoints_is_one_value_of_a_sweep(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    from pipeline.archive.format.schema import archives_of
    from pipeline.cli.main import main
    from pipeline.models.tiny import tiny_network

    folder = tmp_path / "ck's, ü"
    folder.mkdir()
    for epoch in (10, 9):
        torch.manual_seed(epoch)
        torch.save(tiny_network().state_dict(), folder / f"epoch{epoch}.pt")
    words = ("model=tiny", "dataset=synthetic", "dataset.samples=2", "device=cpu")
    sweep = (f"model.weights=null,glob:{folder}/*.pt", f"hydra.sweep.dir={tmp_path}/s")
    assert main(("extract", "-m", *words, *sweep)) == 0
    order = ["weights=epoch9", "weights=epoch10", "weights=null"]
    assert [path.name for path in archives_of(tmp_path / "s")] == order
    rows = (tmp_path / "s" / "catalogue.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == order
    out = capfd.readouterr().out
    assert [out.index(name) for name in ("epoch9", "epoch10")] == sorted(
        out.index(name) for name in ("epoch9", "epoch10")
    )
    with Archive.open(tmp_path / "s" / "archives" / order[1]) as archive:
        assert archive.manifest.config["model"]["weights"] == f"{folder}/epoch10.pt"


@pytest.mark.slow
def test_a_sweeps_archives_are_given_without_quotes_and_tell_their_job(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli.main import main

    words = ("model=tiny", "dataset=synthetic", "dataset.samples=2", "device=cpu")
    sweep = ("layers.include=[conv1,conv2],[fc]", "seed=3", f"hydra.sweep.dir={tmp_path}/s")
    assert main(("extract", "-m", *words, *sweep)) == 0
    archives = sorted((tmp_path / "s" / "archives").iterdir())
    assert len(archives) == 2
    assert all(set(path.name) <= set(SAFE) for path in archives)
    for archive in archives:
        draw = (f"archive={archive}", "renderers=pca", f"hydra.run.dir={tmp_path}/{archive.name}")
        assert main(("render", *draw)) == 0, archive
        capfd.readouterr()
        assert main(("info", str(archive))) == 0
        out = capfd.readouterr().out
        layers = "[fc]" if "fc" in archive.name else "[conv1,conv2]"
        assert f"layers.include={layers} " in out
        assert "-m" not in out


SAFE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-="


def test_what_makes_files_of_an_archive_makes_them_of_a_sweeps(
    tiny_archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import json
    import shutil

    from pipeline.cli.main import main

    sweep, other = tmp_path / "s", tmp_path / "t"
    for name in ("one", "two"):
        shutil.copytree(tiny_archive, sweep / "archives" / name)
        shutil.copytree(tiny_archive, other / name / "archive")
    assert main(("pack", str(sweep), str(tmp_path / "packed"))) == 0
    with Archive.open(tmp_path / "packed" / "two.h5") as packed:
        assert len(packed) == len(packed.samples) > 0
    assert main(("pack", str(sweep), str(tmp_path / "packed"))) == 2
    assert "already exists; give a new folder" in capfd.readouterr().err
    assert main(("export", str(sweep), str(tmp_path / "arrays"), "--layers", "fc")) == 0
    exported = sorted(str(p.relative_to(tmp_path / "arrays")) for p in tmp_path.rglob("*.npy"))
    assert exported == ["one/fc.npy", "two/fc.npy"]
    capfd.readouterr()
    assert main(("compare", str(sweep), str(other), "--json")) == 0
    assert [r["equal"] for r in json.loads(capfd.readouterr().out).values()] == [True, True]
    assert main(("compare", str(sweep), str(other))) == 0
    assert capfd.readouterr().out.count("equal within") == 2
    shutil.rmtree(other / "two")
    shutil.copytree(other / "one", other / "three")
    assert main(("compare", str(sweep), str(other))) == 2
    assert "three: only in " in capfd.readouterr().err
    assert main(("compare", str(sweep), str(tiny_archive))) == 1
    assert "the folder of a sweep; choose one of" in capfd.readouterr().err
