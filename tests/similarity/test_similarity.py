"""Similarity between layers: every figure against an independent computation."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from pipeline import Archive, Grid, Similarity, health, similarity, write_similarity
from pipeline.common.errors import ConfigError, DoesNotFitError, LayerError
from pipeline.datasets.sequence import FromSequence
from pipeline.extraction.extract import extract
from pipeline.extraction.reductions.base import Reduction
from pipeline.extraction.reductions.per_layer import PerLayer
from pipeline.extraction.reductions.pooling import SpatialMax, SpatialMean
from pipeline.rendering.drawing.picture_formats import encode
from pipeline.similarity.covariance_backend import CovarianceBackend
from pipeline.similarity.cross_products import Sums, cka_of
from pipeline.similarity.features import features_of
from pipeline.similarity.gram import GramBackend, WeightedHsic
from pipeline.similarity.health_page import write_health
from pipeline.similarity.matching import match
from pipeline.similarity.rdm import rdm_of
from scripts.synthetic_archive import layer_of, write_archive
from tests.conftest import tiny_extraction
from tests.helpers.golden_views import layer, sample
from tests.helpers.random_archives import archive_of, correlated, random

FORMS = {False: CovarianceBackend, True: GramBackend}


def gram_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Debiased CKA from n × n matrices, as Song et al. write HSIC₁."""

    def hsic(k: np.ndarray, other: np.ndarray) -> float:
        n = len(k)
        k, other = k.copy(), other.copy()
        np.fill_diagonal(k, 0)
        np.fill_diagonal(other, 0)
        one = np.ones(n)
        middle = (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ other) + middle - 2 * (one @ k @ other @ one) / (n - 2)) / (
            n * (n - 3)
        )

    x, y = (v.reshape(len(v), -1).astype(np.float64) for v in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    k, other = x @ x.T, y @ y.T
    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


@pytest.mark.parametrize("n", [9, 40, 150])
@pytest.mark.parametrize("shards", [1, 4])
def test_cka_is_that_of_the_grams(n: int, shards: int, tmp_path: Path) -> None:
    arrays = correlated(n, (3, 30, 200))  # fewer and more features than samples
    arrays["l0"][:, 1] = 7  # a constant channel
    arrays["l1"] += np.float32(1000)  # a mean of a thousand times the spread
    path = archive_of(tmp_path / "a", arrays, shards)
    found = similarity(path, bootstrap=0).matrix("cka")
    expected = [[gram_cka(a, b) for b in arrays.values()] for a in arrays.values()]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_both_forms_and_any_shards_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.similarity import similarity as module

    arrays = correlated(61, (4, 20, 70))
    labels = [i % 3 for i in range(61)]
    options = {"measures": ("cka", "rsa", "procrustes"), "bootstrap": 20}
    found: list[Similarity] = []
    for shards, by_rows in ((1, False), (7, False), (1, True), (5, True)):
        monkeypatch.setattr(module, "_choose", lambda *_, kind=FORMS[by_rows], **__: kind)
        path = archive_of(tmp_path / f"{shards}{by_rows}", arrays, shards, labels=labels)
        found.append(similarity(path, **options))  # type: ignore[arg-type]
    for other in found[1:]:
        for measure, figures in found[0].figures.items():
            for name in ("value", "low", "high", "trimmed"):
                a, b = getattr(figures, name), getattr(other.figures[measure], name)
                np.testing.assert_allclose(a, b, atol=1e-9, err_msg=f"{measure} {name}")
        assert found[0].labels is not None
        assert other.labels is not None
        np.testing.assert_allclose(found[0].labels.cka, other.labels.cka, atol=1e-9)
        assert (found[0].labels.accuracy == other.labels.accuracy).all()


def test_independent_layers_have_none(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    drawn = []
    for _ in range(200):
        sums = Sums.empty((64, 48))
        sums.add_features(chance.standard_normal((256, 64 + 48)))
        drawn.append(cka_of(sums.hsic())[0, 1])
    assert abs(np.mean(drawn)) < 0.005


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(6, 40), p=st.integers(1, 12), q=st.integers(1, 12), seed=st.integers(0, 10**6),
    scale=st.floats(1e-3, 1e3),
)  # fmt: skip
def test_rotations_scales_and_merges_change_nothing(
    n: int, p: int, q: int, seed: int, scale: float
) -> None:
    chance = np.random.default_rng(seed)
    x, y = chance.standard_normal((n, p)), chance.standard_normal((n, q))
    turn = np.linalg.qr(chance.standard_normal((p, p)))[0]
    turned = scale * x @ turn + chance.standard_normal(p)
    whole, parts = Sums.empty((p, p, q)), Sums.empty((p, p, q))
    block = np.hstack([x, turned - turned.mean(0), y])
    whole.add_features(block)
    for part in np.array_split(block, 3):
        one = Sums.empty((p, p, q))
        one.add_features(part)
        parts.products += one.products
    found = cka_of(whole.hsic())
    np.testing.assert_allclose(cka_of(parts.hsic()), found, atol=1e-9)
    np.testing.assert_allclose(found[0], found[1], atol=1e-8)
    np.testing.assert_allclose(np.diagonal(found)[np.isfinite(np.diagonal(found))], 1)
    left = whole - parts
    assert left.rows == 0
    np.testing.assert_allclose(left.cross, 0, atol=1e-8 * scale**2 + 1e-8)


def test_weights_stand_for_repeated_rows_that_are_never_paired_with_themselves() -> None:
    """The weighted estimate is the average over distinct rows, taken one by one here."""
    from itertools import permutations

    chance = np.random.default_rng(3)
    n = 7
    x, y = chance.standard_normal((n, 3)), chance.standard_normal((n, 4))
    weights = chance.integers(0, 4, n).astype(float)
    k, other = x @ x.T, y @ y.T
    terms = {2: [0.0, 0.0], 3: [0.0, 0.0], 4: [0.0, 0.0]}
    for i, j in permutations(range(n), 2):
        terms[2][0] += weights[i] * weights[j] * k[i, j] * other[i, j]
        terms[2][1] += weights[i] * weights[j]
    for i, j, q in permutations(range(n), 3):
        terms[3][0] += weights[[i, j, q]].prod() * k[i, j] * other[i, q]
        terms[3][1] += weights[[i, j, q]].prod()
    for i, j, q, r in permutations(range(n), 4):
        terms[4][0] += weights[[i, j, q, r]].prod() * k[i, j] * other[q, r]
        terms[4][1] += weights[[i, j, q, r]].prod()
    a, b, c = (above / below for above, below in terms.values())
    found = WeightedHsic(weights[None]).of_pairs([k, other])[0, 0, 1]
    assert found == pytest.approx(a - 2 * b + c, rel=1e-12)
    sums = Sums.empty((3, 4))
    sums.add_features(np.hstack([x, y]))
    once = WeightedHsic(np.ones((1, n))).of_pairs([k, other])[0]
    np.testing.assert_allclose(once, sums.hsic(), rtol=1e-10)


def test_rsa_is_spearmans_correlation_of_correlation_distances(tmp_path: Path) -> None:
    arrays = correlated(30, (6, 9))
    found = similarity(archive_of(tmp_path / "a", arrays), measures=("rsa",), bootstrap=0)
    upper = np.triu_indices(30, 1)
    rdms = [(1 - np.corrcoef(values.astype(np.float64)))[upper] for values in arrays.values()]
    assert found.matrix("rsa")[0, 1] == pytest.approx(spearmanr(*rdms)[0], abs=1e-12)
    assert np.isnan(found.figures["rsa"].low).all()  # type: ignore[index]


def test_procrustes_is_the_angle_after_the_best_turn(tmp_path: Path) -> None:
    from scipy.linalg import orthogonal_procrustes

    arrays = correlated(50, (8, 8))
    x, y = (v.astype(np.float64) - v.mean(0, dtype=np.float64) for v in arrays.values())
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    turn, _ = orthogonal_procrustes(x, y)
    found = similarity(archive_of(tmp_path / "a", arrays), measures=("procrustes",), bootstrap=0)
    expected = np.arccos(((x @ turn) * y).sum())
    assert found.matrix("procrustes")[0, 1] == pytest.approx(expected, abs=1e-7)
    assert found.matrix("procrustes")[0, 0] == 0


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("factor", [100, 30_000])
def test_trimmed_leaves_out_the_rows_farthest_out_of_either_layer(
    factor: int, by_rows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.similarity import similarity as module

    monkeypatch.setattr(module, "_choose", lambda *_, **__: FORMS[by_rows])
    arrays = correlated(200, (4, 6, 3))
    arrays["l0"][17] *= factor
    arrays["l1"][101] *= factor
    arrays["l2"][5] *= factor
    path = archive_of(tmp_path / "a", arrays)
    figures = similarity(path, bootstrap=0).figures["cka"]  # type: ignore[index]
    del arrays["l2"]
    norms = [np.square(v.astype(np.float64) - v.mean(0, dtype=np.float64)).sum(1)
             for v in arrays.values()]  # fmt: skip
    gone = set(np.argsort(-norms[0])[:2]) | set(np.argsort(-norms[1])[:2])
    assert {17, 101} <= gone
    kept = [i for i in range(200) if i not in gone]
    expected = gram_cka(*(v[kept] for v in arrays.values()))
    assert figures.trimmed[0, 1] == pytest.approx(expected, abs=1e-9 if factor == 100 else 1e-6)
    assert abs(figures.trimmed[0, 1] - figures.value[0, 1]) > 0.1


@pytest.mark.slow
def test_intervals_cover_about_as_often_as_they_say(tmp_path: Path) -> None:
    """The value of many more samples lies inside in most of 40 datasets, not in all by width."""
    truth = gram_cka(*correlated(3000, (4, 6), seed=99).values())
    inside, widths = 0, []
    for seed in range(40):
        base = random(80, 5, seed=1000 + seed)
        arrays = {
            f"l{i}": base @ random(5, w, seed=10 + i) + 0.5 * random(80, w, seed=seed * 7 + i)
            for i, w in enumerate((4, 6))
        }
        path = archive_of(tmp_path / str(seed), arrays)
        figures = similarity(path).figures["cka"]  # type: ignore[index]
        inside += figures.low[0, 1] <= truth <= figures.high[0, 1]
        widths.append(figures.high[0, 1] - figures.low[0, 1])
    assert inside >= 34
    assert max(widths) < 0.4


def test_of_large_datasets_a_part_is_drawn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.similarity import bootstrap as intervals

    arrays = correlated(600, (4, 6))
    path = archive_of(tmp_path / "a", arrays)
    every = ("cka", "rsa", "procrustes")
    whole = similarity(path, measures=every).figures
    monkeypatch.setattr(intervals, "_ROWS", 300)
    part = similarity(path, measures=every).figures
    for measure in every:
        a, b = whole[measure], part[measure]  # type: ignore[index]
        assert a.value[0, 1] == b.value[0, 1]
        assert b.low[0, 1] < b.value[0, 1] < b.high[0, 1]
        ratio = (b.high - b.low)[0, 1] / (a.high - a.low)[0, 1]
        assert 0.6 < ratio < 1.6, measure


def test_maps_are_averaged_flattened_or_taken_by_position(tmp_path: Path) -> None:
    large, small = random(25, 3, 6, 4), random(25, 5, 3, 2, seed=1)
    small += large[:, :1, ::2, ::2]
    path = archive_of(tmp_path / "a", {"large": large, "small": small}, 3)

    def value(over: str) -> Similarity:
        return similarity(path, over=over, bootstrap=0)

    mean = gram_cka(large.mean((2, 3)), small.mean((2, 3)))
    assert value("mean").matrix()[0, 1] == pytest.approx(mean, abs=1e-5)  # means are float32
    assert value("flatten").matrix()[0, 1] == pytest.approx(gram_cka(large, small), abs=1e-9)
    down = large.reshape(25, 3, 3, 2, 2, 2).astype(np.float64).mean((3, 5))
    rows = [np.moveaxis(v, 1, -1).reshape(150, -1) for v in (down, small)]
    by_position = value("positions")
    assert by_position.matrix()[0, 1] == pytest.approx(gram_cka(*rows), abs=1e-9)
    assert by_position.grid == (3, 2)
    assert by_position.samples == 25
    assert "averaged down to it: large" in by_position.notes[0]
    drawn = similarity(path, over="positions", bootstrap=30, measures=("cka", "rsa", "procrustes"))
    for figures in drawn.figures.values():
        assert figures.low[0, 1] < figures.high[0, 1]


@pytest.mark.parametrize(
    ("reduction", "text"),
    [
        (SpatialMean(), "means over positions"),
        (SpatialMax(), "maxima over positions"),
        (PerLayer(default="spatial_max"), "maxima over positions"),
    ],
)
def test_rows_of_reduced_layers_are_described(
    reduction: Reduction, text: str, tmp_path: Path
) -> None:
    extract(tiny_extraction(tmp_path / "a", reduction=reduction))
    with Archive.open(tmp_path / "a") as archive:
        assert {features.rows_are for features in features_of([archive], "mean")} == {text}


def test_averaging_is_that_of_torch() -> None:
    import torch

    from pipeline.similarity.features import averaged

    maps = random(2, 7, 5, 3)
    found = averaged(maps.astype(np.float64), (3, 2))
    tensor = torch.from_numpy(maps).permute(0, 3, 1, 2).double()
    expected = torch.nn.functional.adaptive_avg_pool2d(tensor, (3, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-12)


def test_prefix_tokens_are_left_out_of_means_and_positions(tmp_path: Path) -> None:
    tokens, maps = random(20, 5, 3), random(20, 4, 2, 2, seed=1)
    layers = {
        "tokens": layer_of(tokens, prefix_tokens=1, grid=(2, 2)),
        "maps": layer_of(maps),
    }
    path = write_archive(tmp_path / "a", layers, [str(i) for i in range(20)])
    found = similarity(path, bootstrap=0).matrix()[0, 1]
    assert found == pytest.approx(gram_cka(tokens[:, 1:].mean(1), maps.mean((2, 3))), abs=1e-5)
    rows = tokens[:, 1:].reshape(80, 3), np.moveaxis(maps, 1, -1).reshape(80, 4)
    found = similarity(path, over="positions", bootstrap=0).matrix()[0, 1]
    assert found == pytest.approx(gram_cka(*rows), abs=1e-9)


@pytest.mark.parametrize("by_rows", [False, True])
def test_labels_are_told_apart_as_by_hand(
    by_rows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.similarity import similarity as module

    monkeypatch.setattr(module, "_choose", lambda *_, **__: FORMS[by_rows])
    n = 42
    labels = np.array([0, 0, 1, 1, 1, 2, 5] * 6)
    labels[3] = 7  # alone in its class
    values = random(n, 6) + 1.5 * random(8, 6, seed=5)[labels]
    path = archive_of(tmp_path / "a", {"x": values, "y": random(n, 3)}, 4, labels=labels.tolist())
    found = similarity(path).labels
    assert found is not None
    wide, hits = values.astype(np.float64), []
    for i in range(n):
        if (labels == labels[i]).sum() < 2:
            continue
        others = np.arange(n) != i
        means = {c: wide[others & (labels == c)].mean(0) for c in set(labels[others])}
        nearest = min(means, key=lambda c: np.linalg.norm(wide[i] - means[c]))
        hits.append(nearest == labels[i])
    assert found.accuracy[0] == pytest.approx(np.mean(hits))
    assert found.accuracy[0] > found.accuracy[1]
    one_hot = (labels[:, None] == np.unique(labels)).astype(float)
    assert found.cka[0] == pytest.approx(gram_cka(wide, one_hot), abs=1e-9)
    assert found.low[0] < found.cka[0] < found.high[0]
    assert (found.labels, found.chance) == (5, pytest.approx(17 / 41))


def test_samples_are_matched_by_id_and_what_is_dropped_is_counted(tmp_path: Path) -> None:
    values = correlated(40, (4, 6))
    values["l0"][5, 2] = np.nan
    ids = [f"img{i}" for i in range(40)]
    one = write_archive(
        tmp_path / "one", {"l0": layer_of(values["l0"])}, ids, skipped=["img7"], shards=3
    )
    order = np.random.default_rng(0).permutation(40)[:36]
    two = write_archive(
        tmp_path / "two", {"l1": layer_of(values["l1"][order])}, [ids[i] for i in order], shards=2
    )
    kept = sorted(set(order.tolist()) - {5, 7})
    for layers in ((), ("l?",)):
        found = similarity([one, two], bootstrap=0, layers=layers)
        expected = gram_cka(values["l0"][kept], values["l1"][kept])
        assert found.matrix()[0, 1] == pytest.approx(expected, abs=1e-9)
    assert (found.samples, found.missing) == (len(kept), 4)
    assert found.skipped == (7 in order)
    assert found.nonfinite == (5 in order)
    assert [layer.archive for layer in found.layers] == ["one", "two"]
    with Archive.open(one) as a, Archive.open(two) as b:
        again = similarity([a, b], bootstrap=0, samples=20, seed=3)
        assert again.samples in (19, 20)
        assert a.layers["l0"][0].shape == (4,)  # left open


def test_archives_without_a_selected_layer_limit_no_samples(tmp_path: Path) -> None:
    ids = [str(i) for i in range(30)]
    few = write_archive(tmp_path / "few", {"other": layer_of(random(6, 3))}, ids[:6])
    arrays = correlated(30, (6, 9))
    many = write_archive(tmp_path / "many", {k: layer_of(v) for k, v in arrays.items()}, ids)
    found = similarity([few, many], layers="l*", measures="rsa", bootstrap=0)
    upper = np.triu_indices(30, 1)
    rdms = [(1 - np.corrcoef(values.astype(np.float64)))[upper] for values in arrays.values()]
    assert found.samples == 30
    assert found.matrix("rsa")[0, 1] == pytest.approx(spearmanr(*rdms)[0], abs=1e-12)


def test_a_random_part_of_the_samples_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.similarity import measures

    path = archive_of(tmp_path / "a", correlated(30, (6, 9)))
    note = "a random 12 of 30 samples"
    assert note in similarity(path, samples=12, bootstrap=0).notes
    monkeypatch.setattr(measures, "_MOST_STIMULI", 12)
    assert note in similarity(path, measures="rsa", bootstrap=0).notes
    notes = similarity(path, measures=("cka", "rsa"), bootstrap=0).notes
    assert note not in notes
    assert "rsa uses 12 of 30 rows" in notes


def test_labels_are_matched_by_name(tmp_path: Path) -> None:
    """Each archive may number them, and may have some of them."""
    x = {"x": layer_of(random(8, 3))}
    tables: list[tuple[list[int], dict[int, str]]] = [
        ([0, 0, 1, 1, -1, -1, -1, -1], {0: "cat", 1: "dog"}),
        ([-1, 3, 0, 0, 3, 3, 0, 0], {0: "dog", 3: "cat"}),
    ]
    paths = [
        write_archive(tmp_path / f"a{number}", x, list("abcdefgh"), labels=labels, names=names)
        for number, (labels, names) in enumerate(tables)
    ]
    with Archive.open(paths[0]) as one, Archive.open(paths[1]) as two:
        assert match([one, two]).labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
        assert match([two, one]).labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
        assert match([one]).labels.tolist() == [0, 0, 1, 1, -1, -1, -1, -1]


def test_what_cannot_be_compared_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.similarity import similarity as module

    x = {"x": layer_of(random(6, 3)), "maps": layer_of(random(6, 3, 2, 2))}
    one = write_archive(tmp_path / "one", x, list("abcdef"), labels=[0, 1] * 3)
    other = write_archive(tmp_path / "other", x, list("uvwxyz"))
    twisted = write_archive(tmp_path / "twisted", x, list("abcdef"), labels=[1, 1] * 3)
    (tmp_path / "link").symlink_to(one)
    few = write_archive(tmp_path / "few", x, list("abuv"), labels=[0, 1] * 2)
    cases: list[tuple[dict[str, object], str]] = [
        ({"archives": [one, other]}, "no sample in common .the first ids are a and u"),
        ({"archives": [one, twisted]}, "a has label 0 in .*one and 1 in .*twisted"),
        ({"archives": [one, one]}, "is given twice"),
        ({"archives": [one, tmp_path / "link"]}, "link is given twice"),
        ({"archives": one, "measures": ("ckaa",)}, "unknown measure 'ckaa'; did you mean cka"),
        ({"archives": one, "measures": ()}, "no measure is given; use cka, rsa, procrustes"),
        ({"archives": one, "over": "men"}, "unknown over 'men'; did you mean mean"),
        ({"archives": one, "layers": ("y",)}, "no layer 'y'"),
        ({"archives": one, "over": "positions"}, "x: it has no positions; leave it out"),
        ({"archives": one, "samples": 3}, "samples must be at least 4, got 3"),
        ({"archives": one, "bootstrap": -1}, "bootstrap must be at least 0"),
        ({"archives": [one, few]}, "2 samples left, 4 are needed; use more samples"),
    ]
    for options, said in cases:
        with pytest.raises(ConfigError, match=said):
            similarity(**options)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "available_memory", lambda: 2**20)
    with pytest.raises(DoesNotFitError, match="use --over mean, fewer --layers, or --samples N"):
        similarity(one)


def test_one_measure_and_one_glob_need_no_list(tmp_path: Path) -> None:
    archive = archive_of(
        tmp_path / "a", {"x1": random(10, 3), "x2": random(10, 3), "y": random(10, 3)}
    )
    found = similarity(archive, measures="rsa", layers="x*")
    assert ([layer.name for layer in found.layers], [*found.figures]) == (["x1", "x2"], ["rsa"])
    assert [*health(archive, layers="x*").layers] == ["x1", "x2"]
    with Archive.open(archive) as opened:
        assert [*health(opened.with_layers("x*")).layers] == ["x1", "x2"]
    assert write_similarity(found, str(tmp_path / "out")).is_file()


def test_names_that_dejavu_lacks_have_a_font_in_figures(tmp_path: Path) -> None:
    lacking = "conv \u1d84"  # STIX, which ships with matplotlib, has it
    archive = archive_of(tmp_path / lacking, {lacking: random(10, 3), "conv": random(10, 4)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of missing glyphs
        write_similarity(similarity(archive, bootstrap=0), tmp_path / "similarity")
        write_health(health(archive), tmp_path / "health")
        nowhere = archive_of(tmp_path / "a", {"conv \U0010fffd": random(10, 3)})
        write_health(health(nowhere), tmp_path / "boxes")
    for file in (tmp_path / "similarity" / "cka.pdf", tmp_path / "health" / "health.pdf"):
        assert b"STIX" in file.read_bytes()


def test_figures_ignore_the_style_of_the_user(tmp_path: Path) -> None:
    style: Any = {
        "text.usetex": True, "image.origin": "lower", "axes.grid": True, "text.color": "white",
        "xtick.color": "white", "font.size": 22, "savefig.bbox": "tight", "figure.dpi": 40,
        "axes.facecolor": "black", "savefig.transparent": True,
    }  # fmt: skip
    layers = {"x_1": random(10, 3), "x_2": random(10, 4)}
    archive = archive_of(tmp_path / "a", layers, labels=[0, 1] * 5)
    drawing = Grid(max_channels=2, tile_size=16).draw_layer(layer(), sample())
    files = []
    for folder, used in (("plain", {}), ("styled", style)):
        with mpl.rc_context(used):
            write_similarity(similarity(archive, bootstrap=0), tmp_path / folder / "similarity")
            write_health(health(archive), tmp_path / folder / "health")
            figure = encode(drawing, "svg")
        written = {
            path.relative_to(tmp_path / folder): path.read_bytes()
            for path in (tmp_path / folder).rglob("*.*")
        }
        files.append(written | {Path("grid.svg"): figure})
    assert {path.suffix for path in files[0]} >= {".png", ".pdf", ".svg"}
    assert files[0] == files[1]


def test_few_samples_and_constant_layers_are_said(tmp_path: Path) -> None:
    arrays = {"x": random(10, 3), "flat": np.ones((10, 4), np.float32), "one": random(10, 1)}
    found = similarity(archive_of(tmp_path / "a", arrays), measures=("cka", "rsa", "procrustes"))
    assert "only 10 samples" in found.notes[0]
    for measure in ("cka", "rsa", "procrustes"):
        values = found.matrix(measure)
        assert np.isnan(values[0, 1]), measure
    assert np.isnan(found.matrix("rsa")[0, 2])  # a single channel has no pattern
    assert "rsa is undefined, since too few samples have patterns that differ: one" in found.notes
    assert np.isfinite(found.matrix("cka")[0, 2])


def test_too_few_samples_for_an_interval_or_a_trimmed_value(tmp_path: Path) -> None:
    """Debiased CKA needs four distinct rows: most draws of four samples have fewer. Any two rows
    can be turned to any two others.
    """
    for count in (4, 12):
        path = archive_of(
            tmp_path / str(count), {"x": random(count, 5), "y": random(count, 6, seed=1)}
        )
        result = similarity(path, measures=("cka", "procrustes"))
        cka, procrustes = result.figures["cka"], result.figures["procrustes"]
        assert np.isfinite([cka.value, procrustes.value]).all()
        assert np.isnan([cka.low, cka.high]).all() == (count == 4)
        assert np.isnan(procrustes.trimmed[0, 1]) == np.isnan(cka.trimmed[0, 1]) == (count == 4)
        assert np.isfinite(procrustes.low).all()


@pytest.mark.parametrize("by_rows", [False, True])
def test_one_sample_has_no_interval(
    by_rows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its positions are rows, but there is nothing to resample."""
    from pipeline.similarity import similarity as module

    monkeypatch.setattr(module, "_choose", lambda *_, **__: FORMS[by_rows])
    for count in (1, 2):
        arrays = {"x": random(count, 5, 4, 4), "y": random(count, 6, 4, 4, seed=1)}
        path = archive_of(tmp_path / str(count), arrays)
        result = similarity(path, measures=("cka", "rsa", "procrustes"), over="positions")
        for measure, figures in result.figures.items():
            assert np.isfinite(figures.value).all(), measure
            assert np.isnan([figures.low[0, 1], figures.high[0, 1]]).all() == (count == 1), measure
        samples = {1: "1 sample", 2: "2 samples"}[count]
        assert f"only {samples}: estimates are unreliable" in result.notes[1]


@pytest.mark.parametrize("by_rows", [False, True])
def test_degenerate_layers_are_undefined_everywhere(
    by_rows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not 1 with itself, nor the rounding of a constant layer; not in any interval either."""
    from pipeline.similarity import similarity as module

    monkeypatch.setattr(module, "_choose", lambda *_, **__: FORMS[by_rows])
    lone = np.zeros((40, 6), np.float32)
    lone[17] = [1, 5, 2, 8, 1, 3]
    arrays = {
        "live": random(40, 6), "zero": np.zeros((40, 6, 2, 2), np.float32),
        "third": np.tile(np.float32([0.1, 0.7, 1e3 / 3]), (40, 1)),  # its mean is rounded
        "same": np.full((40, 5), np.float32(0.1)), "lone": lone,
    }  # fmt: skip
    labels = [i % 3 for i in range(40)]
    path = archive_of(tmp_path / "a", arrays, labels=labels)
    found = similarity(path, measures=("cka", "rsa", "procrustes"), bootstrap=40)
    for measure, own in (("cka", 1), ("rsa", 1), ("procrustes", 0)):
        figures = found.figures[measure]  # type: ignore[index]
        assert figures.low[0, 0] == pytest.approx(own)
        for name in ("value", "low", "high", "trimmed"):
            values = getattr(figures, name)
            assert values[0, 0] == pytest.approx(own)
            assert np.isnan(values[1:4]).all(), (measure, name)
            assert np.isnan(values[:, 1:4]).all(), (measure, name)
        if measure != "procrustes":  # one sample that differs has neither covariance nor ranks
            assert np.isnan(figures.value[4]).all()
            assert np.isnan(figures.low[4]).all()
    assert found.labels is not None
    assert np.isnan(found.labels.accuracy).tolist() == [False, True, True, True, False]
    assert np.isnan(found.labels.low).tolist() == [False, True, True, True, True]
    notes = "\n".join(found.notes)
    assert "constant over these samples, so all measures are undefined: zero, third, same" in notes
    assert "cka is undefined, since too few samples differ: lone" in notes


def test_infinities_are_left_out_and_no_warning(tmp_path: Path) -> None:
    values = random(30, 4, 3, 3)
    values[3, 1, 0, 0], values[4, 2, 1, 1], values[5, 0, 0, 0] = np.inf, -np.inf, np.nan
    values[6, 0, 0, 0], values[6, 0, 0, 1] = np.inf, -np.inf
    arrays = {"x": values, "y": random(30, 4)}
    path = archive_of(tmp_path / "a", arrays, 3)
    kept = [i for i in range(30) if i not in (3, 4, 5, 6)]
    for over in ("mean", "flatten"):
        found = similarity(path, over=over, measures=("cka", "rsa"), bootstrap=10)
        assert found.nonfinite == 4
        x = values[kept].mean((2, 3)) if over == "mean" else values[kept]
        expected = gram_cka(x, arrays["y"][kept])
        assert found.matrix()[0, 1] == pytest.approx(expected, abs=1e-6)


def test_cka_of_nothing_is_nan() -> None:
    assert np.isnan(cka_of(np.array([[1.0, 0.5], [0.5, 0.0]]))[0, 1])


@pytest.mark.parametrize("by_rows", [False, True])
def test_a_pattern_that_all_samples_share_changes_no_figure(
    by_rows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flattened maps differ from position to position, by far more than from sample to sample."""
    from pipeline.similarity import similarity as module

    monkeypatch.setattr(module, "_choose", lambda *_, **__: FORMS[by_rows])
    arrays = {name: v.reshape(30, 2, 2, 3) for name, v in correlated(30, (12, 12)).items()}
    pattern = {name: v + 1e3 * random(2, 2, 3, seed=9) for name, v in arrays.items()}
    found = [
        similarity(archive_of(tmp_path / str(i), values), over="flatten", measures="cka")
        for i, values in enumerate((arrays, pattern))
    ]
    for part in ("value", "low", "high", "trimmed"):
        alone, shared = (getattr(each.figures["cka"], part) for each in found)  # type: ignore[index]
        np.testing.assert_allclose(shared, alone, atol=1e-4, err_msg=part)


@pytest.mark.parametrize("by_rows", [False, True])
def test_classes_with_equal_means_are_not_told_apart_by_rounding(
    by_rows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.similarity import similarity as module

    monkeypatch.setattr(module, "_choose", lambda *_, **__: FORMS[by_rows])
    labels = np.repeat([0, 1, 2], 10)
    values = np.abs(random(30, 50))
    values[:20] = 0  # dead for two of the classes
    path = archive_of(tmp_path / "a", {"x": values}, labels=labels.tolist())
    found = similarity(path, bootstrap=0).labels
    assert found is not None
    assert found.accuracy[0] == pytest.approx(20 / 30)  # the first of equally near classes counts


@pytest.mark.parametrize("by_rows", [False, True])
def test_means_that_differ_by_rounding_only_are_constant(
    by_rows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The means over positions after an InstanceNorm: zero, or its bias."""
    from pipeline.similarity import similarity as module

    monkeypatch.setattr(module, "_choose", lambda *_, **__: FORMS[by_rows])
    maps = random(30, 6, 9, 9)
    normed = maps - maps.mean((2, 3), keepdims=True)
    shifted = normed + random(6, 1, 1, seed=1)
    assert shifted.mean((2, 3)).std(axis=0).max() > 0
    arrays = {"normed": normed, "shifted": shifted, "maps": maps}
    measures = ("cka", "rsa", "procrustes")
    path = archive_of(tmp_path / "a", arrays, labels=[i % 3 for i in range(30)])
    found = similarity(path, measures=measures, bootstrap=10)
    for measure in measures:
        assert np.isfinite(found.matrix(measure)).tolist() == [[False] * 3] * 2 + [
            [False, False, True]
        ], measure
    assert "so all measures are undefined: normed, shifted" in found.notes[0]


def test_drawn_positions_are_not_compared_one_by_one(tmp_path: Path) -> None:
    """Each sample has its own positions: a flattened map of them has no fixed features."""
    drawn = layer_of(random(8, 4, 3), drawn=(0, 16))
    path = write_archive(tmp_path / "a", {"drawn": drawn}, list("abcdefgh"))
    assert np.isfinite(similarity(path, bootstrap=0).matrix()).all()
    for over in ("flatten", "positions"):
        with pytest.raises(LayerError, match="drawn: its positions were drawn; leave"):
            similarity(path, over=over, bootstrap=0)
    with Archive.open(path) as archive, pytest.raises(LayerError, match="positions were drawn"):
        rdm_of(archive, "drawn", range(8), flatten=True)


def test_other_images_under_the_same_ids_are_noted(tmp_path: Path) -> None:
    """As of two splits of a torchvision dataset, whose rows are numbered."""
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 16, 16, 3), dtype=np.uint8)
    for name, items in (("one", images[0]), ("again", images[0]), ("other", images[1])):
        extract(tiny_extraction(tmp_path / name, dataset=FromSequence(items=list(items))))

    def notes(other: str) -> str:
        return " ".join(similarity([tmp_path / "one", tmp_path / other], layers="fc").notes)

    text = "archives have other images under the same ids"
    assert text in notes("other")
    assert text not in notes("again")
