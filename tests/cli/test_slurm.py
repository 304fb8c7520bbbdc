"""One extraction as an array of a real one-node Slurm: a part fails, is redone, all are joined."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Run
from tests.helpers.object_store import BUCKET, ObjectStore
from tests.helpers.one_node_slurm import running
from tests.helpers.stored_arrays import assert_same_arrays

SMALL = (
    "model=tiny", "dataset=synthetic", "dataset.samples=40", "dataset.height=24",
    "dataset.width=24", "device=cpu", "loader.num_workers=0", "loader.batch_size=2",
    "storage.shard_samples=4",
)  # fmt: skip


@pytest.mark.broad
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs Debian's packages of Slurm")
def test_an_array_with_a_failing_part_is_completed_by_the_same_command(
    tmp_path: Path, run: Run
) -> None:
    straight = tmp_path / "straight"
    code, _, err = run(
        "extract", *SMALL, "dataset._target_=tests.helpers.deadly.Fragile", "+dataset.row=17",
        f"+dataset.broken={tmp_path / 'broken'}", f"archive={straight}",
        f"hydra.run.dir={tmp_path / 'one'}",
    )  # fmt: skip
    assert code == 0, err
    archive = tmp_path / "shared" / "archive"
    archive.parent.mkdir()
    (tmp_path / "slurm").mkdir()
    with running(tmp_path / "slurm") as environment:
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        environment["PYTHONPATH"] = str(REPOSITORY)
        command = [
            str(REPOSITORY / "scripts" / "slurm.sh"), str(archive), "8", "launch=slurm_cpu", *SMALL,
            "dataset._target_=tests.helpers.deadly.Fragile", "+dataset.row=17",
            f"+dataset.broken={tmp_path / 'broken'}",
        ]  # fmt: skip

        def submit() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                command, env=environment, cwd=tmp_path, capture_output=True, text=True,
                timeout=900, check=False,
            )  # fmt: skip

        (tmp_path / "broken").touch()
        first = submit()
        print(first.stdout, first.stderr)  # noqa: T201 - shown with `-rP`, and when it fails
        assert first.returncode != 0
        assert "7 of 8 jobs done" in first.stdout
        states = {
            path.parent.name: json.loads(path.read_text())
            for path in Path(f"{archive}.sweep").glob("*/status.json")
        }
        failed = [status for status in states.values() if status["state"] == "failed"]
        assert len(failed) == 1
        assert "the disk has lost it for now" in failed[0]["error"]
        before = {path: path.stat().st_mtime_ns for path in archive.glob("shards/*.h5")}
        (tmp_path / "broken").unlink()
        second = submit()
        print(second.stdout, second.stderr)  # noqa: T201
        assert second.returncode == 0
        assert "8 of 8 jobs done" in second.stdout
        after = {path: path.stat().st_mtime_ns for path in archive.glob("shards/*.h5")}
        assert len(after) > len(before)
        assert after.items() >= before.items()
    assert_same_arrays(straight, archive)


@pytest.mark.broad
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs Debian's packages of Slurm")
def test_an_array_whose_tasks_share_only_a_bucket(
    s3: ObjectStore, tmp_path: Path, run: Run
) -> None:
    straight, url = tmp_path / "straight", f"s3://{BUCKET}/array 1"
    code, _, err = run("extract", *SMALL, f"archive={straight}", folder=str(tmp_path / "one"))
    assert code == 0, err
    (tmp_path / "slurm").mkdir()
    with running(tmp_path / "slurm") as environment:
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        environment["PYTHONPATH"] = str(REPOSITORY)
        done = subprocess.run(
            [str(REPOSITORY / "scripts" / "slurm.sh"), url, "4", *SMALL], env=environment,
            cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    print(done.stdout, done.stderr)  # noqa: T201
    assert done.returncode == 0
    assert f"{url}: verified; 40 samples" in done.stdout
    assert run("copy", url, str(tmp_path / "copied"))[0] == 0
    assert_same_arrays(straight, tmp_path / "copied")
