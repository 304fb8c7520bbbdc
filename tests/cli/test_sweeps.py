"""Sweeps: failing and dying jobs, rerunning, sharing archives, launchers, the catalogue."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from PIL import Image
from playwright.sync_api import Browser, expect

from pipeline.archive.reading.archive import Archive
from pipeline.cli.jobs import leased
from tests.conftest import REPOSITORY, Run, photo
from tests.helpers.chromium import Watch, needs_chromium
from tests.helpers.object_store import BUCKET, ObjectStore
from tests.helpers.processes import SLOW, group_is_gone, start, start_background, wait_for
from tests.helpers.stored_arrays import assert_same_arrays
from tests.helpers.sweeping import DRAW, SMALL, sweep

LAUNCHERS = {
    "basic": (),
    "joblib": ("launch=processes",),
    "submitit": ("hydra/launcher=submitit_local",),
    "ray": ("launch=ray",),
}
PLUGINS = {
    "basic": "hydra",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}


def statuses(folder: Path) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(folder.glob("*/status.json"))
    }


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "catalogue.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def written(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.suffix in (".h5", ".png"))
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "basic",
        pytest.param("joblib", marks=pytest.mark.broad),
        pytest.param("submitit", marks=pytest.mark.broad),
        pytest.param("ray", marks=pytest.mark.broad),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_broken_model_leaves_the_others_alone(launcher: str, tmp_path: Path) -> None:
    """Three models, one broken, × two layer sets; then the same command again."""
    if find_spec(PLUGINS[launcher]) is None:
        pytest.skip(f"the launcher {launcher} is not installed")
    arguments = (
        "model=tiny,resnet18,checkpoint", "model.weights=null", "layers=convs,blocks",
        "dataset.samples=2", *SMALL[:1], *SMALL[2:], *DRAW,
        "+model.transform.crop=[32]", "+model.transform.resize=[32]", *LAUNCHERS[launcher],
    )  # fmt: skip
    arguments = tuple(word.lstrip("+") for word in arguments)
    done = sweep(tmp_path / "sweep", *arguments)
    assert done.returncode not in (0, None)
    assert done.stderr.splitlines()[-1].startswith("featuremaps: error:"), done.stderr[-2000:]
    found = statuses(tmp_path / "sweep")
    assert len(found) == 6
    for name, status in found.items():
        log = (tmp_path / "sweep" / name / "featuremaps.log").read_text()
        if "checkpoint" in name:
            assert status["state"] == "failed"
            assert "model" in status["error"]
            assert "Traceback" in log
        else:
            assert status["state"] == "done", status
            assert status["images"] == status["written"] == 2
            assert "Traceback" not in log
            with Archive.open(Path(status["archive"])) as archive:
                assert len(archive) == 2
            assert (tmp_path / "sweep" / name / "gallery" / "index.html").is_file()
    assert "4 of 6 jobs done" in done.stdout
    states = [row["state"] for row in rows(tmp_path / "sweep")]
    assert sorted(states) == ["done"] * 4 + ["failed"] * 2
    before = written(tmp_path / "sweep")
    again = sweep(tmp_path / "sweep", *arguments)
    assert again.returncode == done.returncode
    assert before == written(tmp_path / "sweep")  # nothing is computed or drawn again
    assert [s.get("written") for s in statuses(tmp_path / "sweep").values()].count(0) == 4


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit", marks=pytest.mark.broad)])
def test_a_job_that_is_killed_is_reported_and_the_others_are_kept(
    launcher: str, tmp_path: Path
) -> None:
    arguments = (
        "model=tiny", *SMALL[:1], "dataset._target_=tests.helpers.deadly.Deadly", *SMALL[2:], *DRAW,
        *LAUNCHERS[launcher],
    )  # fmt: skip
    done = sweep(tmp_path, *arguments, "dataset.samples=3,4,13")
    assert done.returncode not in (0, None)
    assert "featuremaps: error: a job failed or its process died" in done.stderr
    states = [row["state"] for row in rows(tmp_path)]
    assert "done" in states
    assert "died" in states
    assert f"{states.count('done')} of 3 jobs done" in done.stdout
    assert "died" in (tmp_path / "index.html").read_text()
    kept = [Path(row["archive"]) for row in rows(tmp_path) if row["state"] == "done"]
    before = {path: value for folder in kept for path, value in written(folder).items()}
    again = sweep(tmp_path, *arguments, "dataset.samples=3,4")
    assert again.returncode == 0, again.stderr
    assert before == {path: value for folder in kept for path, value in written(folder).items()}
    assert [row["state"] for row in rows(tmp_path)].count("done") == 2


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_one_signal_ends_all_jobs(number: signal.Signals, code: int, tmp_path: Path) -> None:
    words = ("-m", "dataset.samples=3000", "loader.num_workers=0", "seed=1,2,3")
    process = start(*SLOW, *words, f"hydra.sweep.dir={tmp_path}")
    wait_for(lambda: bool(list(tmp_path.glob("archives/*/shards/0*.h5"))), process)
    os.kill(process.pid, number)
    out, err = process.communicate()
    assert process.returncode == code, err
    assert err.splitlines()[-1].startswith("featuremaps: error: stopped by SIG")
    first, *others = rows(tmp_path)
    assert [row["state"] for row in others] == ["not started"] * 2
    assert (first["state"], first["job"]) == ("interrupted", "seed=1")
    assert {"model=tiny", "dataset.samples=3000", "seed=1"} < {*first["overrides"].split()}
    assert float(first["seconds"]) > 0
    assert "0 of 3 jobs done" in out


def test_the_exit_of_a_launcher_at_sigterm_is_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray has a handler of its own."""
    ray = SimpleNamespace(launch=lambda *_, **__: sys.exit(1))
    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_: ray)
    done = sweep(tmp_path, "model=tiny", *SMALL, "seed=1,2")
    assert done.returncode == 143
    assert "stopped by SIGTERM; run the same command again to resume" in done.stderr
    assert "0 of 2 jobs done" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", pytest.param("ray", marks=pytest.mark.broad)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_all_jobs_that_run_at_once(
    launcher: str, number: signal.Signals, tmp_path: Path
) -> None:
    if find_spec(PLUGINS[launcher]) is None:
        pytest.skip(f"the launcher {launcher} is not installed")
    words = ("-m", *LAUNCHERS[launcher], "dataset.samples=30000", "loader.num_workers=0")
    arguments = (*SLOW, *words, "seed=1,2,3", f"hydra.sweep.dir={tmp_path}")
    process = start_background(*arguments, env=dict(os.environ))
    wait_for(lambda: len(list(tmp_path.glob("archives/*/shards/0*.h5"))) > 1, process)
    os.kill(process.pid, number)
    _, err = process.communicate()
    assert process.returncode == 128 + number, err
    assert err.splitlines()[-1].startswith("featuremaps: error: ")
    group_is_gone(process.pid)
    begun = [row for row in rows(tmp_path) if row["state"] != "not started"]
    assert len(begun) >= 2
    assert {row["state"] for row in begun} == {"interrupted"}
    assert all("seed=" in row["overrides"] for row in begun)


@pytest.mark.slow
def test_jobs_that_only_draw_differently_share_an_archive(tmp_path: Path) -> None:
    done = sweep(tmp_path, "model=tiny", *SMALL, *DRAW, "renderers.mean_map.colormap=viridis,magma")
    assert done.returncode == 0, done.stderr
    found = list(statuses(tmp_path).values())
    assert len(found) == 2
    assert len({status["archive"] for status in found}) == 1
    assert sorted(status["written"] for status in found) == [0, 4]
    pictures = [next((tmp_path / s["job"] / "pictures/mean_map").glob("*.png")) for s in found]
    assert pictures[0].read_bytes() != pictures[1].read_bytes()


@pytest.mark.slow
def test_shards_as_a_sweep_make_one_archive(tmp_path: Path, run: Run) -> None:
    assert run("extract", "model=tiny", *SMALL, "dataset.samples=9", "storage.shard_samples=2",
               f"archive={tmp_path / 'straight'}",
               f"hydra.run.dir={tmp_path / 'one'}")[0] == 0  # fmt: skip
    done = sweep(
        tmp_path / "sweep", "model=tiny", *SMALL, "dataset.samples=9", "shard.count=3",
        "storage.shard_samples=2", "shard.index=range(0,3)", *DRAW,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "sweep" / "archives").iterdir()
    assert_same_arrays(tmp_path / "straight", archive)


@pytest.mark.slow
def test_archives_outside_the_folder_of_a_sweep_are_found(tmp_path: Path) -> None:
    folder, out = tmp_path / "sweep", tmp_path / "my out"
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(
        "# @package _global_\n"
        f"archive: {out}/${{seed}}-${{hydra:job.num}}/${{hydra:sweep.subdir}}\n"
    )
    done = sweep(folder, "--config-dir", str(tmp_path / "conf"), "sweep=mine", "model=tiny",
                 *SMALL, *DRAW, "layers.include=[conv1]", "seed=4,7",
                 "sweep.similarity=[cka]")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs done" in done.stdout
    archives = [out / "4-0" / "seed=4", out / "7-1" / "seed=7"]
    check_outside(folder, done.stdout, [str(archive) for archive in archives])
    assert all((archive / "COMPLETE.json").is_file() for archive in archives)


@pytest.mark.slow
def test_archives_of_a_sweep_in_a_bucket_are_found(
    s3: ObjectStore, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    folder, bucket = tmp_path / "sweep", f"s3://{BUCKET}/run"
    words = ("model=tiny", *SMALL, *DRAW, "layers.include=[conv1]", "seed=4,7",
             f"archive={bucket}/${{.seed}}-${{hydra:job.num}}",
             f"storage_options={{aws_endpoint_url: '{s3.endpoint}'}}")  # fmt: skip
    done = sweep(folder, *words, "sweep.similarity=[cka]")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs done" in done.stdout
    check_outside(folder, done.stdout, [f"{bucket}/4-0", f"{bucket}/7-1"])
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint)
    page = (folder / "index.html").read_text()
    s3.clear()
    local = tmp_path / "local"
    assert run("copy", f"{bucket}/4-0", str(local))[0] == 0
    s3.clear()
    assert run("health", str(local), "--out", str(folder / "health"))[0] == 0
    assert not s3.requests  # nobody named its archives
    assert (folder / "index.html").read_text() == page
    named = (f"{bucket}/4-0", f"{bucket}/7-1")
    assert run("health", *named, "--out", str(folder / "health"))[0] == 0
    assert "health/index.html" in (folder / "index.html").read_text()


@pytest.mark.slow
def test_statuses_come_back_from_nodes_without_the_folder_of_the_sweep(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, launch = tmp_path / "sweep", BasicLauncher.launch

    def elsewhere(self: BasicLauncher, *given: Any, **named: Any) -> Any:
        (folder / "jobs.json").unlink()
        results = launch(self, *given, **named)
        for job in folder.iterdir():
            if job.is_dir():
                shutil.rmtree(job)
        return pickle.loads(pickle.dumps(results))

    monkeypatch.setattr(BasicLauncher, "launch", elsewhere)
    bucket = f"s3://{BUCKET}/elsewhere"
    words = ("model=tiny", *SMALL, *DRAW, "layers.include=[conv1],[no],[conv2]",
             f"archive={bucket}/${{hydra:job.num}}")  # fmt: skip
    done = sweep(folder, *words)
    assert done.returncode != 0
    assert "2 of 3 jobs done" in done.stdout
    jobs = ["include=conv1", "include=conv2", "include=no"]
    assert [row["job"] for row in rows(folder)] == [*statuses(folder)] == jobs
    assert [row["state"] for row in rows(folder)] == ["done", "done", "failed"]
    assert [row["archive"] for row in rows(folder)] == [f"{bucket}/0", f"{bucket}/2", ""]
    assert rows(folder)[2]["error"].startswith("layers.include: ")
    assert done.stdout.splitlines()[-1] == f"explore:  featuremaps serve {bucket}/0 {bucket}/2"


def check_outside(folder: Path, out: str, archives: list[str]) -> None:
    """Check what a sweep of two seeds tells of its archives."""
    assert [row["job"] for row in rows(folder)] == [*statuses(folder)] == ["seed=4", "seed=7"]
    assert [row["archive"] for row in rows(folder)] == archives
    assert [row["state"] for row in rows(folder)] == ["done", "done"]
    assert out.splitlines()[-1] == f"explore:  featuremaps serve {shlex.join(archives)}"
    compared = (folder / "similarity" / "similarity.csv").read_text()
    assert len(compared.splitlines()) > 1
    page = (folder / "index.html").read_text()
    for archive in archives:
        assert archive in page


@pytest.mark.broad
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_writes_to_a_bucket(s3: ObjectStore, tmp_path: Path) -> None:
    if find_spec(PLUGINS["ray"]) is None:
        pytest.skip("the launcher ray is not installed")
    folder, bucket = tmp_path / "sweep", f"s3://{BUCKET}/ray"
    words = ("model=tiny", *SMALL, *DRAW, "seed=4,7", f"archive={bucket}/${{seed}}")
    done = subprocess.run(
        ["sh", str(REPOSITORY / "scripts" / "ray.sh"), str(folder), *words],
        env={**os.environ, "RAY_PORT": "6417", "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 of 2 jobs done" in done.stdout
    assert [row["archive"] for row in rows(folder)] == [f"{bucket}/4", f"{bucket}/7"]
    for url in (f"{bucket}/4", f"{bucket}/7"):
        with Archive.open(url) as archive:
            assert len(archive) == len(archive.stored.nonzero()[0]) > 0


@pytest.mark.slow
def test_a_sweep_kept_in_a_file_runs_without_m(tmp_path: Path) -> None:
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      model: tiny\n      seed: 0,1\n      model.weights: 'null'\n"
    )
    process = start("extract", "--config-dir", str(tmp_path / "conf"), "sweep=mine", *SMALL,
                    f"hydra.sweep.dir={tmp_path / 'out'}")  # fmt: skip
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "2 of 2 jobs done" in out
    assert len(list((tmp_path / "out" / "archives").iterdir())) == 2


@pytest.mark.slow
def test_a_sweep_over_layers_gets_a_hint(tmp_path: Path) -> None:
    arguments = ("model=tiny", *SMALL, "layers.include=[conv1],[conv2]", *DRAW)
    done = sweep(tmp_path, *arguments)
    assert (
        "hint: layers.include: each job repeats the forward passes of the same model" in done.stderr
    )
    assert "hint" not in sweep(tmp_path / "b", "model=tiny", "seed=0,1", *SMALL, *DRAW).stderr


@pytest.mark.slow
@needs_chromium
def test_the_catalogue_shows_jobs_and_the_same_sample_side_by_side(
    tmp_path: Path, run: Run, browser: Browser
) -> None:
    evil = "<img src=x onerror=alert(1)>&\"'"
    (tmp_path / "photos" / evil).mkdir(parents=True)
    for i in range(27):  # more than one page
        Image.fromarray(photo(i)).save(tmp_path / "photos" / evil / f"{i:02}#é%.png")
    code, out, err = run(
        "run", "-m", "model=tiny", "layers.include=[conv1],[conv1,conv2],[nothing]", *DRAW,
        "dataset=image_folder", f"dataset.root={tmp_path / 'photos'}", "device=cpu",
        "render.samples=all",
        f"hydra.sweep.dir={tmp_path / 'a sweep'}",
    )  # fmt: skip
    assert code == 2, err
    index = tmp_path / "a sweep" / "index.html"
    assert f"catalogue: {index}" in out
    page = browser.new_page()
    watch = Watch(page, "file://")
    page.goto(index.as_uri())
    assert "3 jobs" in page.title()
    lines = page.locator("table.jobs tbody tr")
    expect(lines).to_have_count(3)
    found = sorted(line.locator("td").first.inner_text() for line in lines.all())
    assert found == ["done", "done", "failed"]
    expect(page.locator("table.jobs .fault").last).to_contain_text("no layer 'nothing'")
    strips = page.locator("td.strip img")
    expect(strips).to_have_count(2 * 25)
    for strip in strips.all()[:4]:
        strip.scroll_into_view_if_needed()
        page.wait_for_function(
            "(i) => i.complete && i.naturalWidth > 0", arg=strip.element_handle()
        )
        shown = strip.evaluate("(i) => [i.width, i.height, i.naturalWidth, i.naturalHeight]")
        assert shown[:2] == shown[2:]
    assert page.locator("th.sample").first.inner_text().startswith(f"{evil}/00#é%.png")
    names = page.locator("ol.layers").nth(1).locator("li").all_inner_texts()
    assert sorted(names) in (["conv1", "conv2", "input"], ["conv1", "input"])
    page.get_by_role("link", name="next →").first.click()
    expect(page.locator("td.strip img")).to_have_count(2 * 2)
    page.locator("td.strip a").first.click()
    expect(page.locator("h1")).to_contain_text("25#é%.png")  # the sample's page in that gallery
    page.goto(index.as_uri())
    page.get_by_role("link", name="gallery").first.click()
    expect(page.locator("h1")).to_have_text("tiny")
    assert not watch.complaints
    page.close()


def test_jobs_take_gpus_that_no_other_has(tmp_path: Path) -> None:
    names = ["a", "b"]
    with leased(names, tmp_path) as one, leased(names, tmp_path) as two:
        assert {one, two} == {0, 1}
        with leased(names, tmp_path) as three:
            assert three in (0, 1)  # shared
    holder = "import sys; from pathlib import Path; from pipeline.cli.jobs import leased\n"
    holder += f"with leased(['a', 'b'], Path({str(tmp_path)!r})) as i:\n"
    holder += "    print(i, flush=True)\n    sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "0\n"
    with leased(names, tmp_path) as mine:
        assert mine == 1
    other.kill()
    other.communicate()
    with leased(names, tmp_path) as mine:
        assert mine == 0  # a job that died has given its GPU back
