"""Attention weights with prefix tokens: their positions are all pairs of queries and keys."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from pipeline import ActivationLoader, Archive, export, similarity
from pipeline.archive.tools.verify import verify
from scripts.synthetic_archive import layer_of, write_archive
from tests.helpers.random_archives import values_of

WEIGHTS = values_of(0, 3, 8, 8)


def test_weights_are_read_whole(tmp_path: Path) -> None:
    axes = ("head", "query", "key")
    layers = {
        "a": layer_of(WEIGHTS, axes=axes, grid=(2, 3), prefix_tokens=2),
        "plain": layer_of(WEIGHTS, axes=axes),
    }
    path = write_archive(tmp_path / "archive", layers, [str(i) for i in range(24)])
    verify(path)
    with h5py.File(path / "archive.h5") as file:
        attributes = file["layers/a/activation"].attrs
        assert (attributes["prefix_tokens"], attributes["grid"].tolist()) == (2, [2, 3])
    with Archive.open(path) as archive:
        for name in layers:
            mean = archive.layers[name].sample_mean
            np.testing.assert_allclose(mean, WEIGHTS.mean((2, 3)), atol=1e-6)
        for pool in ("mean", "max"):
            out = tmp_path / pool
            export(archive, out, "npy", pool=pool)
            expected = getattr(WEIGHTS, pool)((2, 3))
            for name in layers:
                np.testing.assert_allclose(np.load(out / f"{name}.npy"), expected, atol=1e-6)
    batch = next(iter(ActivationLoader(path, ["a", "plain"], batch_size=24, positions=64)))
    places, rows = batch.positions["a"].numpy().reshape(24, 64), batch.rows[::64]
    assert sorted(places[0]) == list(range(64))
    flat = WEIGHTS.reshape(24, 3, 64)
    expected = np.stack([flat[row][:, own].T for row, own in zip(rows, places, strict=True)])
    np.testing.assert_array_equal(batch.activations["a"], expected.reshape(-1, 3))
    result = similarity(path, measures=("cka",), over="flatten", bootstrap=0)
    assert result.matrix("cka")[0, 1] > 1 - 1e-9
