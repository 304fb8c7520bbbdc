"""Sweeps: every job has a name and a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest


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
    assert [page.parent.parent.name.split("-")[0] for page in pages] == ["one", "two"]
    code = main(("render", "-m", archives, *draw, f"hydra.sweep.dir={tmp_path / 't'}",
                 "hydra.sweep.subdir=same"))  # fmt: skip
    err = capfd.readouterr().err
    assert code == 2
    assert "would both write to same" in err
    assert not (tmp_path / "t").exists()  # an error before either starts


def test_a_sweeps_folder_stands_for_its_archives(
    tiny_archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import json
    import shutil

    from pipeline.archive.reader import Archive
    from pipeline.cli.main import main
    from pipeline.foundation.errors import ArchiveError

    for name in ("one", "two"):
        shutil.copytree(tiny_archive, tmp_path / "archives" / name)
    assert main(("info", str(tmp_path))) == 0
    assert capfd.readouterr().out.count(": complete\n") == 2
    assert main(("verify", str(tmp_path), "--json")) == 0
    assert [Path(each["path"]).name for each in json.loads(capfd.readouterr().out)] == [
        "one",
        "two",
    ]
    with pytest.raises(ArchiveError, match=r"a sweep's folder; choose one of .*archives/one, "):
        Archive.open(tmp_path)
    damaged = tmp_path / "archives" / "two" / "shards" / "00001.h5"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    assert main(("verify", str(tmp_path))) == 1
    assert "two/shards/00001.h5" in capfd.readouterr().err


def test_jobs_that_differ_have_names_that_differ(
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


def test_long_names_keep_what_tells_jobs_apart() -> None:
    from pipeline.cli.job_names import job_name

    choices = {"model": "tiny", "dataset": "synthetic", "layers": "blocks"}
    long = "renderers.grid.channels=[" + ",".join(map(str, range(60))) + "]"
    one, other = (
        job_name([f"dataset.root=/{'x' * 80}/{last}", long, "seed=1"], choices)
        for last in ("cats", "dogs")
    )
    assert one != other
    assert len(one) <= 110
    assert "seed-1" in one
    assert "cats" in one
    assert "dogs" in other


SAFE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-"


def test_what_makes_files_of_an_archive_makes_them_of_a_sweeps(
    tiny_archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import json
    import shutil

    from pipeline import Archive
    from pipeline.cli.main import main

    sweep, other = tmp_path / "s", tmp_path / "t"
    for name in ("one", "two"):
        shutil.copytree(tiny_archive, sweep / "archives" / name)
        shutil.copytree(tiny_archive, other / name / "archive")
    assert main(("pack", str(sweep), str(tmp_path / "packed"))) == 0
    with Archive.open(tmp_path / "packed" / "two.h5") as packed:
        assert len(packed) == len(packed.samples) > 0
    assert main(("pack", str(sweep), str(tmp_path / "packed"))) == 2
    assert "exists; name a new folder" in capfd.readouterr().err
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
    assert "a sweep's folder; choose one of" in capfd.readouterr().err
