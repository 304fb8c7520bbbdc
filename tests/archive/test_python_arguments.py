"""Arguments of the wrong type in Python: one line says what is taken."""

from __future__ import annotations

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
        lambda path, _: pipeline.similarity([path]),
        lambda path, _: pipeline.health([path]),
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
