"""A renderer refuses an option that was set and has no effect, and no other."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.common.errors import ConfigError
from pipeline.renderers.compare import Compare
from pipeline.renderers.grid import Grid
from pipeline.renderers.pca import PCA
from pipeline.renderers.top_samples import TopSamples


@pytest.mark.parametrize(
    ("kind", "options", "idle"),
    [
        (Grid, {"channels": 3}, {"select": "max", "order": "channel"}),
        (Grid, {"channels": 3}, {"select_over": "dataset"}),
        (Grid, {"select": "first"}, {"select_over": "dataset", "order": "channel"}),
        (Grid, {"normalize": "dataset"}, {"percentile": [1, 99]}),
        (Grid, {"normalize": "map", "titles": False}, {"colorbar": True}),
        (PCA, {"fit": "sample"}, {"positions": 9, "seed": 1, "shared_colors": False}),
        (PCA, {"fit": "dataset"}, {"seed": 1}),
        (TopSamples, {"opacity": 0}, {"colormap": "gray", "scale": "log"}),
        (Compare, {"show": "pca"}, {"colormap": "gray", "scale": "log", "difference": False}),
    ],
)
def test_an_option_without_effect_is_refused(
    kind: Any, options: dict[str, Any], idle: dict[str, Any]
) -> None:
    kind(**options)
    for name, value in idle.items():
        with pytest.raises(ConfigError, match=rf"^{kind.__name__}: {name}: has no effect with.+"):
            kind(**options, **{name: value})


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Grid, {"channels": 3, "max_channels": 4}),  # a limit, perhaps of an experiment
        (TopSamples, {"channels": 3, "count": 4}),
        (Grid, {"select": "max", "select_over": "dataset", "order": "channel", "max_channels": 4}),
        (Grid, {"normalize": "layer", "titles": False, "colorbar": True, "percentile": [1, 99]}),
        (PCA, {"fit": "dataset", "positions": 9, "seed": 1, "shared_colors": False}),
        (TopSamples, {"count": 4, "colormap": "gray", "scale": "log"}),
        (Compare, {"colormap": "gray", "scale": "log", "difference": False}),
    ],
)
def test_options_with_an_effect_are_taken(kind: Any, options: dict[str, Any]) -> None:
    kind(**options)
