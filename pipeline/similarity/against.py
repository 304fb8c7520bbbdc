"""RSA of layers against reference RDMs, with the noise ceiling of several subjects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, one_line, plural
from pipeline.similarity.features import features_of
from pipeline.similarity.matching import Matched, drawn_samples, match, random_part
from pipeline.similarity.measures import RankDraws, most_stimuli, ranks_of
from pipeline.similarity.rdm import ranked
from pipeline.similarity.reference_rdm import Reference, read_references
from pipeline.similarity.results import ComparedLayer, layer_names
from pipeline.similarity.rows import FEWEST, Rows
from pipeline.similarity.similarity import checked, compared_archives, compared_layers

ALL = "all"
"""Subject name of the mean over subjects."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """Spearman's correlation of the RDMs of layers with reference RDMs.

    Attributes:
        layers: layers in execution order, archive by archive.
        subjects: names of the references.
        each: correlation per subject, `(subject, layer)`; NaN where undefined.
        value: mean over subjects, `(layer,)`.
        low, high: ends of its 95 % bootstrap interval; NaN without a bootstrap.
        ceiling: lower and upper bound for any model (Nili et al. 2014, "A toolbox for
            representational similarity analysis", PLoS Comput. Biol. 10); NaN with one subject.
        samples: number of samples of the RDMs.
        rows: description of a row, for example "means over positions".
        notes: messages about the result.
    """

    layers: Sequence[ComparedLayer]
    subjects: Sequence[str]
    each: Array
    value: Array
    low: Array
    high: Array
    ceiling: tuple[float, float]
    samples: int
    rows: str
    notes: Sequence[str]

    def table(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the CSV: one per layer, and one per layer and subject if several."""
        for i, layer in enumerate(self.layers):
            of = {"archive": layer.archive, "layer": layer.name}
            bounds = {
                "low": float(self.low[i]), "high": float(self.high[i]),
                "ceiling_low": self.ceiling[0], "ceiling_high": self.ceiling[1],
                "samples": self.samples,
            }  # fmt: skip
            many = len(self.subjects) > 1
            name = ALL if many else self.subjects[0]
            yield {**of, "subject": name, "value": float(self.value[i]), **bounds}
            undefined = dict.fromkeys(("low", "high", "ceiling_low", "ceiling_high"), float("nan"))
            for subject, values in zip(self.subjects, self.each, strict=True) if many else ():
                value = {"subject": subject, "value": float(values[i])}
                yield {**of, **value, **undefined, "samples": self.samples}


def rsa_against(
    archives: Archive | str | Path | Sequence[Archive | str | Path],
    files: str | Path | Array | Sequence[str | Path | Array],
    *,
    ids: str | Path | Sequence[str] | None = None,
    layers: str | Sequence[str] = (),
    over: str = "mean",
    samples: int | None = None,
    seed: int = 0,
    bootstrap: int = 200,
) -> Against:
    """Compare correlation-distance RDMs of layers with RDMs from files or arrays.

    Samples are matched by id; an RDM without ids has the samples of the first archive, in order.

    Args:
        archives, layers, samples, seed, bootstrap: see `similarity`.
        files: one or several RDMs, each `.npy`, `.npz`, `.csv`, `.tsv`, `.txt` or an array:
            `(sample, sample)`, `(subject, sample, sample)` or `(sample, sample, subject)`, the
            upper triangle row by row as a vector, or `(subject, pair)`. An `.npz` may hold `ids`
            beside its array; a CSV file may name the samples in its first row and column.
        ids: sample ids of all files that have none, or a file of them: a line each, or a table with
            a column `id`.
        over: `mean` or `flatten`.

    Example:
        dataset = pipeline.Synthetic(samples=20)
        extraction = pipeline.Extraction(
            model=pipeline.TinyModel(), dataset=dataset, archive="outputs/seen"
        )
        made = pipeline.extract(extraction)
        rdm = 1 - np.corrcoef(np.random.rand(20, 50))  # instead of a brain's
        print(pipeline.rsa_against(made.archive, rdm).value)  # (layer,)

    Raises:
        ConfigError: when a file is not an RDM, or too few of its samples are in the archives.
    """
    if over == "positions":
        raise ConfigError("similarity: an RDM is over samples, not positions; use mean or flatten")
    rows_are = checked(over, samples, seed, bootstrap)
    several_files: Sequence[Any] = files if isinstance(files, (list, tuple)) else [files]
    references = read_references(several_files, ids)
    with compared_archives(archives, layers) as (first, chosen):
        features = features_of(chosen, rows_are)
        matched, indices, notes = _matched(references, match(chosen), first, samples, seed)
        rows = Rows(features=features, numbers=matched.rows, selected=np.arange(len(matched)))
        stimuli = rows.draw(most_stimuli(len(features) + len(references)), seed)
        layer_ranks, defined, good = ranks_of(rows, stimuli)
        compared = compared_layers(features)
    if len(good) < FEWEST:
        raise ConfigError(
            f"similarity: {plural(len(good), 'sample')} with a pattern in every layer, {FEWEST} "
            "are needed; use more samples, or select layers with two or more channels with --layers"
        )
    if len(stimuli) < len(rows):
        notes.append(random_part(len(stimuli), len(rows)))
    if len(good) < len(stimuli):
        notes.append(
            f"{len(good)} of {len(stimuli)} samples are used; the others are constant, or not "
            "finite, in a layer"
        )
    if undefined := [name for i, name in enumerate(layer_names(compared)) if i not in defined]:
        notes.append(f"undefined, since samples have no pattern: {', '.join(undefined)}")
    numbers = stimuli[good]
    rdms = [of.rdm[np.ix_(at[numbers], at[numbers])]
            for of, at in zip(references, indices, strict=True)]  # fmt: skip
    ranks = [ranked(rdm) for rdm in rdms]
    for of, its_ranks in zip(references, ranks, strict=True):
        if np.isnan(its_ranks).any():
            raise ConfigError(f"{of.path}: all dissimilarities of these samples are equal")
    each = np.full((len(references), len(compared)), np.nan)
    low, high = np.full(len(compared), np.nan), np.full(len(compared), np.nan)
    for i, of_layer in zip(defined, layer_ranks, strict=True):
        each[:, i] = [(its_ranks * of_layer).sum() for its_ranks in ranks]
    value = each.mean(axis=0)
    if bootstrap:
        draws = RankDraws(rows, numbers, [*ranks, *layer_ranks], bootstrap, seed)
        subjects = range(len(references))
        for position, i in enumerate(defined, len(references)):
            resampled = np.mean([draws.drawn(of, position) for of in subjects], axis=0)
            low[i], high[i] = draws.interval_of(resampled, value[i])
    return Against(
        layers=compared, subjects=[of.name for of in references], each=each, value=value, low=low,
        high=high, ceiling=noise_ceiling(rdms), samples=len(good),
        rows=", ".join(dict.fromkeys(layer.rows_are for layer in features)), notes=notes,
    )  # fmt: skip


def _matched(
    references: Sequence[Reference], matched: Matched, first: Archive, samples: int | None,
    seed: int,
) -> tuple[Matched, list[Array], list[str]]:  # fmt: skip
    """Return the samples in all references, their indices in each, and notes."""
    tables: list[dict[str, int]] = []
    for of in references:
        ids = of.ids
        if ids is None:
            ids = [sample.id for sample in first.samples]
            if len(ids) != len(of.rdm):
                raise ConfigError(
                    f"{of.path}: the RDM has {plural(len(of.rdm), 'sample')} and no ids, but "
                    f"{first.path} has {plural(len(ids), 'sample')}; pass their ids with --ids"
                )
        tables.append({id_: i for i, id_ in enumerate(ids) if of.known[i]})
    common = [i for i, id_ in enumerate(matched.ids) if all(id_ in table for table in tables)]
    if len(common) < FEWEST:
        ids = [
            one_line(next(iter(names), "nothing"), limit=60) for names in (tables[0], matched.ids)
        ]
        raise ConfigError(
            f"{references[0].path}: {plural(len(common), 'sample')} in common with "
            f"{first.path}, {FEWEST} are needed (the first ids are {ids[0]} and {ids[1]})"
        )
    notes = []
    by_order = dict.fromkeys(of.path.name for of in references if of.ids is None)
    if by_order:
        notes.append(f"files without ids, read in the archive's order: {', '.join(by_order)}")
    total = len(set(matched.ids).union(*tables))
    if total > len(common):
        notes.append(
            f"left out: {plural(total - len(common), 'sample')} not in all files and archives"
        )
    common = drawn_samples(common, samples, seed)
    subset = replace(
        matched, ids=[matched.ids[i] for i in common], labels=matched.labels[common],
        rows=[rows[common] for rows in matched.rows],
    )  # fmt: skip
    indices = [np.array([table[id_] for id_ in subset.ids], np.int64) for table in tables]
    return subset, indices, notes


def noise_ceiling(rdms: Sequence[Array]) -> tuple[float, float]:
    """Return lower and upper bound of the mean correlation with subjects; NaN for one subject.

    Upper bound: correlation of each subject with the mean ranks of all; lower: of the others.
    """
    if len(rdms) < 2:
        return float("nan"), float("nan")
    ranks = np.array([rankdata(squareform(rdm, checks=False)) for rdm in rdms])
    total = ranks.sum(axis=0)

    def mean(pooled: Sequence[Array]) -> float:
        pairs = zip(ranks, pooled, strict=True)
        return float(np.mean([np.corrcoef(one, rankdata(of))[0, 1] for one, of in pairs]))

    return mean([total - one for one in ranks]), mean([total] * len(ranks))
