"""The explorer over very wide layers, and correlations of their channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import Archive
from pipeline.explorer.collection import ArchiveView, NotFound
from pipeline.explorer.dataset_map import dataset_map
from pipeline.explorer.units import correlations, neighbours
from scripts.synthetic_archive import layer_of, write_archive
from tests.helpers.random_archives import values_of


def test_a_very_wide_layer_needs_no_matrix_of_all_its_channels(tmp_path: Path) -> None:
    """30,000 channels: their pairs took 10 GB, for every page of a unit."""
    wide = values_of(0, 30_000)
    archive = write_archive(tmp_path / "a", {"wide": layer_of(wide)}, [*map(str, range(24))])
    with Archive.open(archive) as opened:
        archive_view = ArchiveView("a", "a", opened)
        found, samples = neighbours(archive_view, opened.layers["wide"], 7, 3)
        points = dataset_map(archive_view, opened.layers["wide"])
        with pytest.raises(NotFound, match=r"30,000 channels; correlations are limited"):
            correlations(archive_view, opened.layers["wide"])
    centred = wide.astype(float) - wide.mean(axis=0, dtype=float)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    assert points.fitted_to == 24
    np.testing.assert_allclose(np.abs(points.scores), np.abs(left * sizes)[:, :2], rtol=1e-4)
    np.testing.assert_allclose(points.explained, (sizes**2 / (sizes**2).sum())[:2], rtol=1e-9)
    centred /= np.linalg.norm(centred, axis=0)
    expected = centred.T @ centred[:, 7]
    expected[7] = 0
    best = np.argsort(-np.abs(expected))[:3]
    assert samples == 24
    assert [channel for channel, _ in found] == best.tolist()
    np.testing.assert_allclose([value for _, value in found], expected[best], rtol=1e-5)


def test_means_that_differ_by_rounding_are_not_correlated(tmp_path: Path) -> None:
    """After an InstanceNorm, every sample has the same mean."""
    maps = values_of(0, 5, 9, 9)
    normed = maps[:, :3] - maps[:, :3].mean((2, 3), keepdims=True)
    maps[:, :3] = normed + np.float32([0, 0.3, -1]).reshape(3, 1, 1)
    assert (maps[:, :3].mean((2, 3)).std(axis=0) > 0).any()
    archive = write_archive(tmp_path / "a", {"x": layer_of(maps)}, [*map(str, range(24))])
    with Archive.open(archive) as opened:
        archive_view = ArchiveView("a", "a", opened)
        found = correlations(archive_view, opened.layers["x"])
        assert neighbours(archive_view, opened.layers["x"], 3, 9)[0][0][0] == 4
    assert np.isnan(found[:3]).all()
    assert np.isfinite(found[3:, 3:]).all()
