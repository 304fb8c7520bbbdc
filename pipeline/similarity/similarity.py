"""Similarity of the layers of one archive, or of several archives over the same samples."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import compress
from typing import NamedTuple, get_args

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.archive.format import schema
from pipeline.archive.format.layer_entry import layers_matching
from pipeline.archive.reading.archive import Archive, opened
from pipeline.archive.reading.archive_names import archive_names, set_apart
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, DoesNotFitError, member, plural, whole
from pipeline.common.machine import available_memory, cores
from pipeline.common.places import Place, place
from pipeline.common.progress import size
from pipeline.common.several import several
from pipeline.similarity import measures as of
from pipeline.similarity.covariance_backend import CovarianceBackend
from pipeline.similarity.features import LayerFeatures, Over, features_of
from pipeline.similarity.gram import GramBackend
from pipeline.similarity.matching import Matched, distinct_paths, match, random_part
from pipeline.similarity.measure_names import Measure
from pipeline.similarity.results import ComparedLayer, LabelFigures, Similarity, layer_names
from pipeline.similarity.rows import FEWEST
from pipeline.similarity.separability import classes_of, counted

log = logging.getLogger(__name__)
_FEW = 20


def similarity(
    archives: Archive | str | Place | Sequence[Archive | str | Place],
    *,
    layers: str | Sequence[str] = (),
    measures: str | Sequence[str] = ("cka",),
    over: str = "mean",
    samples: int | None = None,
    seed: int = 0,
    bootstrap: int = 200,
) -> Similarity:
    """Compare all pairs of layers of archives in one pass over the stored activations.

    Samples are matched by id.

    Args:
        archives: open archives, or paths of archives or sweep folders.
        layers: names, aliases or globs, of any of the archives; empty selects all.
        measures: `cka`, `rsa`, `procrustes`.
        over: `mean` over positions without prefix tokens: a row per sample, a feature per channel;
            `flatten`: a row per sample, a feature per channel and position, with prefix tokens, so
            that measures depend on how positions correspond; or `positions`: a row per sample and
            position, a feature per channel, with larger grids averaged down to a common one.
        samples: maximum number of samples, drawn at random.
        seed: seed of the random draws.
        bootstrap: number of bootstrap resamples for the intervals; 0 disables them.

    Example:
        dataset = pipeline.Synthetic(samples=20)
        extraction = pipeline.Extraction(
            model=pipeline.TinyModel(), dataset=dataset, archive="outputs/alike"
        )
        result = pipeline.similarity(pipeline.extract(extraction).archive)
        print(result.matrix("cka"))

    Raises:
        ConfigError: when the archives have no sample in common, disagree on labels, too few
            samples are left, or a name is unknown.
        DoesNotFitError: when it needs more than half of the free memory.
        ArchiveError: when a shard is damaged.
    """
    selected_measures = [
        member(Measure, word, "similarity: unknown measure") for word in several(measures)
    ]
    if not selected_measures:
        raise ConfigError(f"similarity: no measure is given; use {', '.join(get_args(Measure))}")
    rows_are = checked(over, samples, seed, bootstrap)
    with compared_archives(archives, layers) as (_, chosen):
        features = features_of(chosen, rows_are)
        if selected_measures == ["rsa"]:
            samples = min(samples or len(chosen[0]), of.most_stimuli(len(features)))
        matched = match(chosen, samples, seed)
        return _compare(features, matched, selected_measures, bootstrap, seed)


def checked(over: str, samples: int | None, seed: int, bootstrap: int) -> Over:
    """Return `over`; raise ConfigError if it is unknown, or another is no number or too small."""
    if samples is not None:
        whole("similarity: samples", samples, FEWEST)
    whole("similarity: seed", seed, 0)
    whole("similarity: bootstrap", bootstrap, 0)
    rows_are: Over = member(Over, over, "similarity: unknown over")
    return rows_are


@contextmanager
def compared_archives(
    archives: Archive | str | Place | Sequence[Archive | str | Place], layers: str | Sequence[str]
) -> Iterator[tuple[Archive, list[Archive]]]:
    """Open archives; yield the first, and all that have some of the layers, with these alone.

    Archives that are already open stay open.
    """
    sources: list[Archive | Place] = []
    for archive in several(archives):
        sources += [archive] if isinstance(archive, Archive) else schema.archives_of(place(archive))
    if not sources:
        raise ConfigError("similarity: no archive is given; give one or several")
    distinct_paths(sources, "similarity")
    with ExitStack() as stack, threadpool_limits(cores()):
        all_archives = [stack.enter_context(opened(source)) for source in sources]
        entries = [entry for archive in all_archives for entry in archive.manifest.layers]
        selected = layers_matching(entries, layers, where="similarity")
        chosen = [
            archive.with_layers(names)
            for archive in all_archives
            if (names := [name for name in archive.layers if name in selected])
        ]
        yield all_archives[0], chosen


def _compare(
    features: Sequence[LayerFeatures], matched: Matched, measures: Sequence[Measure],
    bootstrap: int, seed: int,
) -> Similarity:  # fmt: skip
    notes = _notes(features, matched)
    classes, reason = classes_of(matched.labels)
    if reason:
        notes.append(f"{reason}: label separability is not computed")
    number = 0 if classes is None else int(classes.max()) + 1
    kind = _choose(features, len(matched), number, rsa="rsa" in measures)
    backend = kind(features, matched, classes)
    compute = {"cka": of.cka, "rsa": of.rsa, "procrustes": of.procrustes}
    figures = {
        measure: compute[measure](backend, len(features), bootstrap, seed) for measure in measures
    }
    constant = backend.constant()
    labels = None
    selected = backend.rows.selected
    counts = np.zeros(0, int) if classes is None else np.bincount(classes[selected])
    if compared := counted(counts, 1):
        with_labels = figures.get("cka") or of.cka(backend, 0, 0, seed)
        labels = LabelFigures(
            accuracy=np.where(constant, np.nan, backend.accuracies()),
            cka=with_labels.value[-1, :-1],
            low=with_labels.low[-1, :-1],
            high=with_labels.high[-1, :-1],
            labels=int((counts > 0).sum()),
            chance=float(counts.max() / compared),
        )
    count = len(selected)
    nonfinite = len(matched) - count
    if nonfinite:
        notes.append(f"left out: {plural(nonfinite, 'sample')} with non-finite values")
    if count < _FEW:
        notes.append(f"only {plural(count, 'sample')}: estimates are unreliable, see the intervals")
    if "rsa" in figures and figures["rsa"].rows < len(backend.rows):
        notes.append(f"rsa uses {figures['rsa'].rows} of {len(backend.rows)} rows")
    layers = compared_layers(features)
    notes += _undefined(layer_names(layers), constant, figures)
    return Similarity(
        layers=layers,
        figures={measure: figure.first(len(features)) for measure, figure in figures.items()},
        over=features[0].over,
        grid=features[0].grid,
        samples=count,
        missing=matched.missing,
        skipped=matched.skipped,
        nonfinite=nonfinite,
        labels=labels,
        rows=", ".join(dict.fromkeys(layer.rows_are for layer in features)),
        notes=notes,
    )


def compared_layers(features: Sequence[LayerFeatures]) -> list[ComparedLayer]:
    """Return names, archives and models of layers; titles distinguish the archives."""
    paths = list(dict.fromkeys(layer.archive.path for layer in features))
    names = dict(zip(paths, archive_names(paths), strict=True))
    titles = dict(zip(paths, set_apart(list(names.values())), strict=True))
    return [
        ComparedLayer(
            archive=names[layer.archive.path],
            title=titles[layer.archive.path],
            path=layer.archive.path,
            model=layer.archive.manifest.model_title,
            name=layer.layer.name,
            alias=layer.layer.alias,
            features=layer.width,
        )
        for layer in features
    ]


def _notes(features: Sequence[LayerFeatures], matched: Matched) -> list[str]:
    notes = []
    if matched.missing:
        notes.append(f"left out: {plural(matched.missing, 'sample')} not in every archive")
    if matched.skipped:
        notes.append(f"left out: {plural(matched.skipped, 'sample')} skipped in an archive")
    if len(matched) < matched.total:
        notes.append(random_part(len(matched), matched.total))
    datasets = [layer.archive.manifest.identity.get("dataset", {}) for layer in features]
    keys = ("source", "sha256_of_ids_and_labels", "sha256_of_contents")
    contents = {tuple(str(dataset.get(key)) for key in keys) for dataset in datasets}
    if len(contents) > len({content[:2] for content in contents}):
        notes.append(
            "the archives have other images under the same ids: compare them only if one dataset "
            "is a variant of the other"
        )
    if features[0].over == "flatten":
        notes.append(
            "flattened maps are compared position by position: shifted content counts as dissimilar"
        )
    if grid := features[0].grid:
        larger = [
            layer.layer.alias for layer in features if layer.layer.entry.spatial_shape != grid
        ]
        grid_text = f"{grid[0]}×{grid[1]}"
        notes.append(
            f"rows are positions of a grid of {grid_text}"
            + (f"; averaged down to it: {', '.join(larger)}" if larger else "")
        )
    return notes


def _undefined(
    names: Sequence[str], constant: Array, figures: Mapping[Measure, of.Figures]
) -> list[str]:
    notes = []
    if constant.any():
        constant_names = ", ".join(compress(names, constant))
        notes.append(
            f"constant over these samples, so all measures are undefined: {constant_names}"
        )
    for measure, figure in figures.items():
        unknown = np.isnan(np.diagonal(figure.value)[: len(names)]) & ~constant
        if unknown.any():
            unknown_names = ", ".join(compress(names, unknown))
            differ = "have patterns that differ" if measure == "rsa" else "differ"
            notes.append(f"{measure} is undefined, since too few samples {differ}: {unknown_names}")
    return notes


class _Cost(NamedTuple):
    kind: type[CovarianceBackend | GramBackend]
    how: str
    work: int
    nbytes: int


def _choose(
    features: Sequence[LayerFeatures], samples: int, classes: int, *, rsa: bool
) -> type[CovarianceBackend | GramBackend]:
    """Return the backend with the least work that fits into half of the free memory."""
    rows = samples * features[0].rows_per_sample
    widths = [layer.width for layer in features]
    width, widest = sum(widths) + classes, max(widths)
    memory = 2**27 + (of.rsa_bytes(len(features), rows) if rsa else 0)
    costs = (
        _Cost(CovarianceBackend, "sums over features", work=rows * width**2,
              nbytes=8 * (width**2 + 3 * (2 * widest) ** 2) + memory),
        _Cost(GramBackend, "inner products of rows", work=rows**2 * width,
              nbytes=8 * rows**2 * (len(features) + 4) + memory),
    )  # fmt: skip
    limit = available_memory() // 2
    fitting = [cost for cost in costs if cost.nbytes <= limit]
    problem = f"{plural(len(features), 'layer')}, {sum(widths):,} features, {samples:,} samples"
    problem += f" of {features[0].rows_per_sample} positions" if features[0].grid else ""
    if not fitting:
        smallest = size(min(cost.nbytes for cost in costs))
        raise DoesNotFitError(
            f"similarity: {problem} would need {smallest} of memory, the limit is "
            f"{size(limit)} (half of the free memory); use --over mean, fewer --layers, or "
            "--samples N"
        )
    cost = min(fitting, key=lambda cost: cost.work)
    log.info(
        "similarity: %s: using %s, up to about %s of memory", problem, cost.how, size(cost.nbytes)
    )
    return cost.kind
