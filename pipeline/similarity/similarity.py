"""Similarity: how alike the layers of one archive, or of several over the same samples, are."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.archive.format import schema
from pipeline.archive.format.manifest import layers_matching
from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.archive_names import archive_names, set_apart
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, DoesNotFitError, suggestion
from pipeline.common.machine import available_memory, cores
from pipeline.common.paths import local_path
from pipeline.common.progress import size
from pipeline.similarity import measures as of
from pipeline.similarity.backend import FEWEST, Form
from pipeline.similarity.covariance_backend import CovarianceBackend
from pipeline.similarity.features import LayerFeatures, Over, features_of
from pipeline.similarity.gram_backend import GramBackend
from pipeline.similarity.matching import Matched, match
from pipeline.similarity.measure_names import Measure
from pipeline.similarity.results import ComparedLayer, LabelFigures, Similarity, layer_names
from pipeline.similarity.separability import classes_of

log = logging.getLogger(__name__)
_FEW = 20


def similarity(
    archives: Archive | str | Path | Sequence[Archive | str | Path],
    *,
    layers: Sequence[str] = (),
    measures: Sequence[str] = ("cka",),
    over: str = "mean",
    samples: int | None = None,
    seed: int = 0,
    bootstrap: int = 200,
) -> Similarity:
    """Return how alike the layers of archives are, from one pass over what is archived.

    Samples are matched by their ids.

    Args:
        archives: open ones or paths, also of a sweep's folder.
        layers: names, aliases or globs, of any of the archives; all where none is given.
        measures: `cka`, `rsa`, `procrustes`.
        over: `mean`, `flatten` or `positions`, see `Over`.
        samples: at most so many, drawn at random.
        seed: of whatever is drawn.
        bootstrap: draws for the intervals, 0 for none.

    Example:
        dataset = pipeline.Synthetic(samples=20)
        extraction = pipeline.Extraction(
            model=pipeline.TinyModel(), dataset=dataset, archive="outputs/alike"
        )
        found = pipeline.similarity(pipeline.extract(extraction).archive)
        print(found.matrix("cka"))

    Raises:
        ConfigError: when the archives have no sample in common, disagree on labels, too few
            samples are left, or a name is unknown.
        DoesNotFitError: when it would take more than half of the memory.
        ArchiveError: when a shard is damaged.
    """
    wanted = [named(Measure, "measure", word) for word in measures]
    rows_are = named(Over, "over", over)
    for name, value in {"samples": samples, "seed": seed, "bootstrap": bootstrap}.items():
        least = FEWEST if name == "samples" else 0
        if value is not None and value < least:
            raise ConfigError(f"similarity: {name} must be at least {least}, got {value}")
    with ExitStack() as stack, threadpool_limits(cores()):
        opened = [stack.enter_context(each) for each in open_archives(archives)]
        chosen = with_layers(opened, layers)
        features = features_of(chosen, rows_are)
        if wanted == [Measure.RSA]:
            samples = min(samples or len(opened[0]), of.most_stimuli(len(features)))
        matched = match(chosen, samples, seed)
        return _compare(features, matched, wanted, bootstrap, seed)


def named(kind: Any, what: str, word: str) -> Any:
    """Return the member of an enumeration that a word names."""
    values = [str(value) for value in kind]
    if word not in values:
        raise ConfigError(f"similarity: no {what} {word!r}; {suggestion(word, values)}")
    return kind(word)


def open_archives(archives: Archive | str | Path | Sequence[Archive | str | Path]) -> Iterable[Any]:
    """Return what opens archives, each given once; open ones stay open."""
    paths: list[Archive | Path] = []
    for each in [archives] if isinstance(archives, (Archive, str, Path)) else archives:
        paths += [each] if isinstance(each, Archive) else schema.archives_of(local_path(each))
    if not paths:
        raise ConfigError("similarity: give an archive")
    counts = Counter(each.path if isinstance(each, Archive) else each for each in paths)
    if twice := [path for path, count in counts.items() if count > 1]:
        raise ConfigError(f"similarity: {twice[0]} is given twice; give each archive once")
    return (
        nullcontext(each) if isinstance(each, Archive) else Archive.open(each) for each in paths
    )


def with_layers(archives: Sequence[Archive], wanted: Sequence[str]) -> list[Archive]:
    """Return the archives with the layers that are wanted; those without one are left out."""
    if not wanted:
        return list(archives)
    everywhere = [entry for archive in archives for entry in archive.manifest.layers]
    names = layers_matching(everywhere, wanted, where="similarity")
    found = []
    for archive in archives:
        kept = [name for name in archive.layers if name in names]
        if kept:
            found.append(archive.with_layers(kept))
    return found


def _compare(
    features: Sequence[LayerFeatures], matched: Matched, measures: Sequence[Measure],
    bootstrap: int, seed: int,
) -> Similarity:  # fmt: skip
    notes = _notes(features, matched)
    found = classes_of(matched.labels)
    classes = None if isinstance(found, str) else found
    if isinstance(found, str) and found:
        notes.append(f"{found}: how well labels are told apart is left out")
    kind = _choose(
        features, len(matched), len(classes.counts) if classes else 0, rsa=Measure.RSA in measures
    )
    form: Form = kind(features, matched, classes)
    compute = {Measure.CKA: of.cka, Measure.RSA: of.rsa, Measure.PROCRUSTES: of.procrustes}
    figures = {each: compute[each](form, len(features), bootstrap, seed) for each in measures}
    constant = form.constant()
    labels = None
    if classes:
        counts = np.bincount(classes.of[form.rows.kept])
        with_labels = figures.get(Measure.CKA) or of.cka(form, 0, 0, seed)
        labels = LabelFigures(
            accuracy=np.where(constant, np.nan, form.accuracies()),
            cka=with_labels.value[-1, :-1],
            low=with_labels.low[-1, :-1],
            high=with_labels.high[-1, :-1],
            labels=int((counts > 0).sum()),
            chance=float(counts.max() / counts.sum()),
        )
    kept = len(form.rows.kept)
    nonfinite = len(matched) - kept
    if nonfinite:
        notes.append(f"{nonfinite} samples have values that are not finite and were left out")
    if kept < _FEW:
        notes.append(f"only {kept} samples: such figures are mostly chance, see the intervals")
    if Measure.RSA in figures and figures[Measure.RSA].rows < len(form.rows):
        notes.append(f"rsa is over {figures[Measure.RSA].rows} of {len(form.rows)} rows")
    layers = compared_layers(features)
    notes += _undefined(layer_names(layers), constant, figures)
    return Similarity(
        layers=layers,
        figures={measure: each.first(len(features)) for measure, each in figures.items()},
        over=features[0].over,
        grid=features[0].grid,
        samples=kept,
        missing=matched.missing,
        skipped=matched.skipped,
        nonfinite=nonfinite,
        labels=labels,
        rows=", ".join(dict.fromkeys(each.rows_are for each in features)),
        notes=notes,
    )


def compared_layers(features: Sequence[LayerFeatures]) -> list[ComparedLayer]:
    """Return which layers these are, with names that set their archives apart."""
    paths = list(dict.fromkeys(each.archive.path for each in features))
    names = dict(zip(paths, archive_names(paths), strict=True))
    titles = dict(zip(paths, set_apart(list(names.values())), strict=True))
    return [
        ComparedLayer(
            archive=names[each.archive.path],
            title=titles[each.archive.path],
            path=each.archive.path,
            model=each.archive.manifest.model_title,
            name=each.layer.name,
            alias=each.layer.alias,
            features=each.width,
        )
        for each in features
    ]


def _notes(features: Sequence[LayerFeatures], matched: Matched) -> list[str]:
    notes = []
    if matched.missing:
        notes.append(f"{matched.missing} samples are not in every archive and were left out")
    if matched.skipped:
        notes.append(f"{matched.skipped} samples were skipped by an archive and are left out")
    if features[0].over is Over.FLATTEN:
        notes.append("flattened maps are compared place by place: what is shifted counts as unlike")
    if grid := features[0].grid:
        larger = [each.layer.alias for each in features if each.layer.entry.places != grid]
        shown = f"{grid[0]}×{grid[1]}"
        notes.append(
            f"rows are positions of a grid of {shown}"
            + (f"; averaged down to it: {', '.join(larger)}" if larger else "")
        )
    return notes


def _undefined(
    names: Sequence[str], constant: Array, figures: Mapping[Measure, of.Figures]
) -> list[str]:
    notes = []
    if constant.any():
        shown = ", ".join(name for name, is_so in zip(names, constant, strict=True) if is_so)
        notes.append(f"constant over these samples, so that no figure is defined: {shown}")
    for measure, each in figures.items():
        unknown = np.isnan(np.diagonal(each.value)[: len(names)]) & ~constant
        if unknown.any():
            shown = ", ".join(name for name, is_so in zip(names, unknown, strict=True) if is_so)
            notes.append(f"{measure} is undefined, as too few samples differ: {shown}")
    return notes


class _Cost(NamedTuple):
    kind: type[CovarianceBackend | GramBackend]
    how: str
    work: int
    nbytes: int


def _choose(
    features: Sequence[LayerFeatures], samples: int, classes: int, *, rsa: bool
) -> type[CovarianceBackend | GramBackend]:
    """Return the form that is less work, of those that fit into half of the free memory."""
    rows = samples * features[0].rows_per_sample
    widths = [each.width for each in features]
    width, widest = sum(widths) + classes, max(widths)
    more = 2**27 + (of.rsa_bytes(len(features), rows) if rsa else 0)
    forms = (
        _Cost(CovarianceBackend, "sums over features", work=rows * width**2,
              nbytes=8 * (width**2 + 3 * (2 * widest) ** 2) + more),
        _Cost(GramBackend, "inner products of rows", work=rows**2 * width,
              nbytes=8 * rows**2 * (len(features) + 4) + more),
    )  # fmt: skip
    limit = available_memory() // 2
    fitting = [form for form in forms if form.nbytes <= limit]
    what = f"{len(features)} layers, {sum(widths):,} features, {samples:,} samples"
    what += f" of {features[0].rows_per_sample} positions" if features[0].grid else ""
    if not fitting:
        least = size(min(form.nbytes for form in forms))
        raise DoesNotFitError(
            f"similarity: {what} would take {least} of memory, half of what "
            f"is free are {size(limit)}; use --over mean, fewer --layers, or --samples N"
        )
    form = min(fitting, key=lambda form: form.work)
    log.info("similarity: %s: by %s, up to about %s of memory", what, form.how, size(form.nbytes))
    return form.kind
