"""Result types of `similarity`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.common.arrays import Array
from pipeline.common.errors import known
from pipeline.common.places import Place
from pipeline.similarity.features import Grid, Over
from pipeline.similarity.measure_names import Measure
from pipeline.similarity.measures import Figures


@dataclass(frozen=True, kw_only=True)
class ComparedLayer:
    """One of the compared layers."""

    archive: str  # its name, or its path where several have one name
    title: str  # short; distinguishes the archive
    path: Place
    model: str
    name: str
    alias: str
    features: int  # their number


def layer_names(layers: Sequence[ComparedLayer]) -> list[str]:
    """Return the layers' aliases, with their archives where there are several."""
    many = len({layer.path for layer in layers}) > 1
    return [f"{layer.title}: {layer.alias}" if many else layer.alias for layer in layers]


@dataclass(frozen=True, kw_only=True)
class LabelFigures:
    """Label separability of each layer, `(layer,)` each.

    Attributes:
        accuracy: share of rows nearest to the mean of their own label, each sample being left out
            of it, 0..1; labels of one sample have no rows.
        cka, low, high: debiased CKA with the labels, one-hot, and its 95 % interval.
        labels: number of labels.
        chance: share of the most frequent label among these rows, 0..1.
    """

    accuracy: Array
    cka: Array
    low: Array
    high: Array
    labels: int
    chance: float


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Similarity of layers.

    Attributes:
        layers: in execution order, archive by archive; the axes of all figures.
        figures: measure → its figures.
        over: what rows are; see `similarity`.
        grid: with `positions`, the grid that all layers were brought to.
        samples: number of compared samples.
        missing, skipped, nonfinite: samples left out: not in every archive, skipped by one, or with
            values that are not finite.
        labels: label separability; None without usable labels.
        rows: description of a row.
        notes: messages about the result.
    """

    layers: Sequence[ComparedLayer]
    figures: Mapping[Measure, Figures]
    over: Over
    grid: Grid | None
    samples: int
    missing: int
    skipped: int
    nonfinite: int
    labels: LabelFigures | None
    rows: str
    notes: Sequence[str]

    def matrix(self, measure: str = "cka") -> Array:
        """Return a measure of every pair, `(layer, layer)` float64.

        Raises:
            ConfigError: when the measure was not computed.
        """
        known(measure, self.figures, "no measure")
        return self.figures[measure].value  # type: ignore[index]

    def _repr_html_(self) -> str:
        from pipeline.similarity.similarity_figures import similarity_html  # for notebooks only

        return similarity_html(self)

    def table(self) -> Iterator[dict[str, Any]]:
        """Yield a row for every measure and ordered pair of layers, as in `similarity.csv`."""
        for measure, figures in self.figures.items():
            for i, one in enumerate(self.layers):
                for j, two in enumerate(self.layers):
                    yield {
                        "archive_a": one.archive, "layer_a": one.name,
                        "archive_b": two.archive, "layer_b": two.name,
                        "measure": measure, "over": self.over,
                        "value": float(figures.value[i, j]), "low": float(figures.low[i, j]),
                        "high": float(figures.high[i, j]),
                        "trimmed": float(figures.trimmed[i, j]), "samples": self.samples,
                    }  # fmt: skip
