"""Arguments of the wrong type in Python: one line says what is taken."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.common.errors import ConfigError


@pytest.mark.parametrize("value", [None, 3, "outputs/archive", {"model": "resnet18"}])
@pytest.mark.parametrize("function", [pipeline.extract, pipeline.ActivationStream])
def test_what_is_no_extraction(function: Callable[[Any], Any], value: object) -> None:
    with pytest.raises(ConfigError, match=r"^config: must be a pipeline\.Extraction, got "):
        function(value)


@pytest.mark.parametrize("value", [None, 3, np.zeros(2), pipeline.SampleImages()])
@pytest.mark.parametrize(
    "function",
    [
        pipeline.Archive.open,
        pipeline.verify,
        pipeline.show,
        pipeline.channel_maps,
        pipeline.pca_maps,
        lambda path, _: pipeline.compare(path, path),
        lambda path, _: pipeline.render(path, "out", {}),
        lambda path, _: pipeline.export(path, "out", "npy"),
        lambda path, _: pipeline.ActivationDataset(path, "conv1"),
        lambda path, _: pipeline.ActivationLoader(path, "conv1", 2),
        lambda path, _: pipeline.similarity([path]),
        lambda path, _: pipeline.similarity(path),
        lambda path, _: pipeline.health([path]),
        lambda path, _: pipeline.health(path),
        lambda path, _: pipeline.add_layer(path, "new", np.zeros((7, 2))),
    ],
)
def test_what_is_no_path(function: Callable[..., Any], value: object) -> None:
    arguments = [] if function in (pipeline.Archive.open, pipeline.verify) else ["conv1"]
    with pytest.raises(ConfigError, match=r"^.*: not a path or a URL$"):
        function(value, *arguments)


def test_an_open_archive_or_its_path(tiny_archive: Path) -> None:
    with pipeline.Archive.open(tiny_archive) as archive:
        samples = archive.samples
        for function in (pipeline.channel_maps, pipeline.pca_maps):
            np.testing.assert_array_equal(
                function(tiny_archive, "conv1"), function(archive, "conv1")
            )
        one, two = (pipeline.show(source, 2, "conv1") for source in (archive, str(tiny_archive)))
        assert repr(one) == repr(two)
        for sample in (2, samples[2].id):
            assert pipeline.sample_view(archive, sample).index == 2


def test_rows_before_the_name(tiny_archive: Path) -> None:
    with pytest.raises(ConfigError, match=r"^name: .* is not a printable name"):
        pipeline.add_layer(tiny_archive, np.zeros((7, 2)), "new")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda path: pipeline.similarity(path, samples=6.0),
         "similarity: samples must be a whole number, got 6.0"),
        (lambda path: pipeline.similarity(path, seed=None),
         "similarity: seed must be a whole number, got None"),
        (lambda path: pipeline.similarity(path, bootstrap=True),
         "similarity: bootstrap must be a whole number, got True"),
        (lambda path: pipeline.ActivationLoader(path, "conv1", 2, positions=True),
         "positions: must be a whole number, got True"),
        (lambda path: pipeline.pca_maps(path, "conv1", components=0),
         "components: must be at least 1, got 0"),
        (lambda path: pipeline.pca_maps(path, "conv1", components="2"),
         "components: must be a whole number, got '2'"),
        (lambda path: pipeline.channel_maps(path, "conv1", [7]),
         "rows: index 7 is out of range for axis 0 with size 7"),
        (lambda path: pipeline.export(path, "outputs/none", "npy", rows=[7]),
         "rows: index 7 is out of range for axis 0 with size 7"),
        (lambda path: pipeline.pca_maps(path, "conv1", []), "rows: no sample is selected"),
        (lambda path: pipeline.health(path).matrix("men"), "no figure 'men'; did you mean mean?"),
        (lambda path: pipeline.health(path).matrix("alias"), "no figure 'alias'; choose from: "),
        (lambda path: pipeline.similarity(path, layers=[3]), "similarity: no layer 3; choose "),
        (lambda path: pipeline.similarity(path, layers=3), "similarity: no layer 3; choose "),
        (lambda path: pipeline.similarity(path, measures=None), "similarity: unknown measure None"),
        (lambda path: pipeline.ActivationLoader(path, None, 2), "layers: no layer None; choose "),
        (lambda path: pipeline.ActivationLoader(path, "fc", 2, device=["cpu"]),
         "device: \"['cpu']\" is not available; use cpu, or a device that torch finds"),
    ],
)  # fmt: skip
def test_numbers_rows_and_names(
    tiny_archive: Path, function: Callable[[Path], Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        function(tiny_archive)


def test_rows_are_a_list_a_slice_or_a_mask(tiny_archive: Path) -> None:
    for function in (pipeline.channel_maps, pipeline.pca_maps):
        whole = function(tiny_archive, "conv1")
        for rows in ([5, 1], slice(2, 4), np.arange(7) % 2 == 1, [-1], 3):
            expected = whole[rows if not isinstance(rows, int) else [rows]]
            np.testing.assert_array_equal(function(tiny_archive, "conv1", rows), expected)


def test_no_names_of_layers_select_all(tiny_archive: Path) -> None:
    every = list(pipeline.health(tiny_archive).layers)
    assert list(pipeline.health(tiny_archive, layers=None).layers) == every
