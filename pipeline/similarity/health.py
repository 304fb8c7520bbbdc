"""Health of layers over archives, from the stored statistics: no activation is read."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.layer_entry import LayerEntry, layers_matching
from pipeline.archive.format.statistics import channel_kinds
from pipeline.archive.reading.archive import Archive, opened
from pipeline.archive.reading.archive_names import archive_names, set_apart
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.errors import ConfigError, known, plural
from pipeline.common.places import Place, place
from pipeline.common.several import several
from pipeline.similarity.matching import distinct_paths

_FLOAT16 = 65504


@dataclass(frozen=True, kw_only=True)
class LayerHealth:
    """Figures of one layer in one archive, over all channels, positions and samples.

    Attributes:
        archive: the archive's name.
        layer, alias: the layer's.
        channels: number of channels.
        dead: channels whose values are all exactly zero.
        constant: channels whose values are all the same, but not zero.
        zero_fraction: share of exact zeros among all values, 0..1.
        mean, std: of the finite values (population standard deviation); NaN without any.
        largest: largest magnitude of the finite values; NaN without any.
        nonfinite: number of NaN and infinite values.
        mean_drift, std_drift: relative change against the first archive, (x - first) / |first|; NaN
            where the first has no such layer or is zero.
    """

    archive: str
    layer: str
    alias: str
    channels: int
    dead: int
    constant: int
    zero_fraction: float
    mean: float
    std: float
    largest: float
    nonfinite: int
    mean_drift: float = np.nan
    std_drift: float = np.nan

    @property
    def fault(self) -> str:
        """Problem of the layer; empty if healthy."""
        if self.nonfinite:
            return f"{plural(self.nonfinite, 'value')} not finite"
        if self.dead == self.channels:
            return "every channel is dead"
        if self.dead + self.constant == self.channels:
            return "every channel is constant"
        if self.largest > _FLOAT16:
            return f"the largest magnitude, {self.largest:.3g}, is beyond float16"
        return f"{self.dead:,} of {plural(self.channels, 'channel')} dead" if self.dead else ""

    @property
    def dead_fraction(self) -> float:
        """Share of dead channels, 0..1."""
        return self.dead / self.channels


_FIGURES = [field.name for field in fields(LayerHealth) if field.type is not str]
_FIGURES += ["dead_fraction"]


@dataclass(frozen=True, kw_only=True)
class Health:
    """Result of `health`.

    Attributes:
        archives: their names, the reference of the drift first.
        titles: short names that distinguish the archives.
        paths, models: path and model of each archive.
        layers: name → alias, in execution order.
        cells: `(archive, layer)` → statistics.
        notes: messages about the result.
    """

    archives: Sequence[str]
    titles: Sequence[str]
    paths: Sequence[Place]
    models: Sequence[str]
    layers: dict[str, str]
    cells: dict[tuple[str, str], LayerHealth]
    notes: Sequence[str]

    def table(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of `health.csv`, archive by archive."""
        return (asdict(cell) for cell in self.cells.values())

    def matrix(self, figure: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return a figure, `(layer, archive)` float64; NaN where an archive lacks a layer.

        Raises:
            ConfigError: when there is no such figure.
        """
        known(figure, _FIGURES, "no figure")
        rows = [[getattr(self.cells.get((archive, layer)), figure, np.nan)
                 for archive in self.archives] for layer in self.layers]  # fmt: skip
        return np.array(rows, dtype=np.float64)


def health(
    archives: Archive | str | Place | Sequence[Archive | str | Place],
    *,
    layers: str | Sequence[str] = (),
) -> Health:
    """Return figures of every layer of archives, from their statistics: dead channels, zeros,
    mean, standard deviation, largest magnitude, non-finite values, and the drift of the means.

    Args:
        archives: open archives, or paths of archives or sweep folders; drift is relative to the
            first.
        layers: names, aliases or globs; empty selects all.

    Example:
        dataset = pipeline.Synthetic(samples=4)
        extraction = pipeline.Extraction(
            model=pipeline.TinyModel(), dataset=dataset, archive="outputs/healthy"
        )
        result = pipeline.health(pipeline.extract(extraction).archive)
        print(result.matrix("dead"))  # (layer, archive)

    Raises:
        ConfigError: when an archive is given twice, or no archive is complete.
        LayerError: when a word matches no layer of any archive.
        ArchiveError: when an archive cannot be opened or is damaged.
    """
    sources, notes = _complete_archives(several(archives))
    paths = distinct_paths(sources, "health")
    names = archive_names(paths)
    cells: dict[tuple[str, str], LayerHealth] = {}
    aliases: dict[str, str] = {}
    entries: list[LayerEntry] = []
    models, samples = [], []
    for name, source in zip(names, sources, strict=True):
        with opened(source) as archive:
            entries += archive.manifest.layers
            models.append(archive.manifest.model_title)
            samples.append(list(archive.manifest.samples))
            for layer in archive.layers.values():
                cell = _layer_health(name, layer)
                first = cell if name == names[0] else cells.get((names[0], layer.name))
                if first:
                    mean, std = _change(cell.mean, first.mean), _change(cell.std, first.std)
                    cell = replace(cell, mean_drift=mean, std_drift=std)
                cells[name, layer.name] = cell
                aliases.setdefault(layer.name, layer.alias)
    selected = layers_matching(entries, layers, where="health")
    cells = {key: cell for key, cell in cells.items() if key[1] in selected}
    aliases = {name: alias for name, alias in aliases.items() if name in selected}
    different = sum(ids != samples[0] for ids in samples)
    if different:
        notes.append(
            f"samples other than the first archive's in {different} of {len(paths)} archives: the "
            "drift is also that of the samples"
        )
    return Health(archives=names, titles=set_apart(names), paths=paths, models=models,
                  layers=aliases, cells=cells, notes=notes)  # fmt: skip


def _complete_archives(
    archives: Sequence[Archive | str | Place],
) -> tuple[list[Archive | Place], list[str]]:
    """Return open archives, and those of paths; incomplete ones of a sweep are left out with a
    note.
    """
    sources: list[Archive | Place] = []
    notes = []
    for archive in archives:
        if isinstance(archive, Archive):
            sources.append(archive)
            continue
        members = schema.archives_of(place(archive))
        complete = [
            path for path in members if path.is_file() or (path / schema.COMPLETE).is_file()
        ]
        if len(complete) < len(members) and len(members) > 1:
            missing = f"{len(members) - len(complete)} of {len(members)}"
            notes.append(f"{archive}: incomplete archives left out: {missing}")
            members = complete
        sources += members
    if not sources:
        raise ConfigError("health: no archive is complete")
    return sources, notes


def _layer_health(archive: str, layer: StoredLayer) -> LayerHealth:
    figures = layer.statistics
    count = figures["count"].astype(np.float64)
    mean, std = np.nan_to_num(figures["mean"]), np.nan_to_num(figures["std"])
    low, high = figures["min"], figures["max"]
    total = count.sum()
    center = float((count * mean).sum() / total) if total else np.nan
    variance = (count * (std**2 + (mean - center) ** 2)).sum() / total if total else np.nan
    kinds = channel_kinds(figures)
    largest = np.fmax(np.abs(low), np.abs(high))[count > 0]
    return LayerHealth(
        archive=archive,
        layer=layer.name,
        alias=layer.alias,
        channels=layer.entry.channels,
        dead=int(kinds["dead"].sum()),
        constant=int(kinds["constant"].sum()),
        zero_fraction=float(figures["zero_fraction"].mean()),
        mean=center,
        std=float(np.sqrt(variance)),
        largest=float(largest.max()) if largest.size else np.nan,
        nonfinite=int(figures["nonfinite_count"].sum()),
    )


def _change(value: float, first: float) -> float:
    """Return the relative change; NaN where undefined.

    >>> _change(1.5, -1), _change(0, 0)
    (2.5, nan)
    """
    return (value - first) / abs(first) if first else np.nan
