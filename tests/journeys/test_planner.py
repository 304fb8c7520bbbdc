"""A day before a million images: what it takes, in two parts, watched, and cited."""

from __future__ import annotations

import io
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline import Archive
from tests.conftest import Run

SIDE = 64
WORDS = ("model=tiny", "dataset=synthetic", f"dataset.height={SIDE}", f"dataset.width={SIDE}",
         f"model.transform.resize={SIDE}", f"model.transform.crop={SIDE}", "device=cpu",
         "layers.include=[conv1,conv2]", "reduction=spatial_mean")  # fmt: skip


@pytest.mark.slow
def test_planned_in_parts_watched_and_cited(run: Run, tmp_path: Path) -> None:
    samples = 1_000_000

    def planned(inputs: str) -> dict[str, object]:
        code, said, err = run("plan", *WORDS, f"dataset.samples={samples}",
                              f"storage.inputs={inputs}", "--json")  # fmt: skip
        assert code in (0, 3), err
        return dict(json.loads(said))

    full, small, bare = (planned(inputs) for inputs in ("full", "jpeg", "none"))
    assert full["inputs_bytes"] == samples * 3 * SIDE * SIDE
    assert bare["inputs_bytes"] == 0
    means = {layer["name"]: layer["bytes"] for layer in full["layers"]}  # type: ignore[attr-defined]
    assert means == {"conv1": samples * 4 * 4, "conv2": samples * 6 * 4}  # float32, no maps
    remedies = {one["override"]: one["bytes"] for one in full["remedies"]}  # type: ignore[attr-defined]
    for key, plan in (("jpeg", small), ("none", bare)):  # which have fewer shards
        assert remedies[f"storage.inputs={key}"] == pytest.approx(plan["total_bytes"], rel=0.01)

    words = (*WORDS, "dataset.samples=12", "storage.inputs=jpeg", "storage.shard_samples=3",
             "loader.batch_size=3", f"archive={tmp_path}/archive", "shard.count=2")  # fmt: skip
    code, _, err = run("extract", *words, "shard.index=1", folder="second")
    assert code == 0, err
    code, said, _ = run("info", str(tmp_path / "archive"), "--json")
    facts = json.loads(said)
    assert (facts["complete"], facts["missing_shards"]) == (False, [0, 1])
    assert "2 of 4 done; missing: 00000, 00001" in run("info", str(tmp_path / "archive"))[1]
    code, _, err = run("extract", *words, "shard.index=0", folder="first")
    assert code == 0, err
    assert run("verify", str(tmp_path / "archive"))[0] == 0
    said = run("info", str(tmp_path / "archive"))[1]
    assert "12" in said
    assert "inputs    JPEG, quality 90" in said

    with Archive.open(tmp_path / "archive") as archive:
        digest = archive.manifest.identity["model"]["weights_sha256"]
        image = archive.image(7)
    with h5py.File(tmp_path / "archive" / "archive.h5") as file:
        start, stop = file["inputs/offset"][7:9]
        stored = Image.open(io.BytesIO(file["inputs/jpeg"][start:stop]))
        np.testing.assert_array_equal(np.asarray(stored), image)
    said = run("cite", str(tmp_path / "archive"))[1]
    assert digest in said
    assert "12 samples, 0 skipped" in said
