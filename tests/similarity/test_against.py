"""RSA against RDMs from files: SciPy's correlation, a direct noise ceiling, ids and mistakes."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import squareform
from scipy.stats import rankdata, spearmanr

from pipeline.archive.reading.archive import Archive
from pipeline.cli.main import main
from pipeline.common.errors import ConfigError
from pipeline.similarity.against import rsa_against
from pipeline.similarity.reference_rdm import read_references
from scripts.synthetic_archive import layer_of, write_archive
from tests.helpers.random_archives import archive_of, correlated, random

UPPER = np.triu_indices(30, 1)
IDS = [f"{i:04d}" for i in range(30)]


def rdm(values: np.ndarray) -> np.ndarray:
    return 1 - np.corrcoef(values.astype(np.float64))


def subjects(count: int = 4) -> np.ndarray:
    """RDMs of noisy copies of one code, `(subject, sample, sample)`, with ties."""
    base = correlated(30, (6,))["l0"]
    found = np.array([rdm(base + random(30, 6, seed=50 + i)) for i in range(count)])
    return np.round((found + np.swapaxes(found, 1, 2)) / 2, 2) * (1 - np.eye(30))


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return correlated(30, (6, 9)) | {"dead": np.zeros((30, 4), np.float32)}


@pytest.fixture(scope="module")
def archive(arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive_of(tmp_path_factory.mktemp("against") / "a", arrays, 2)


def write_csv(path: Path, matrix: np.ndarray, ids: list[str] | None) -> Path:
    rows = [[str(x) for x in row] for row in matrix.tolist()]
    if ids is not None:
        rows = [["", *ids], *([id_, *row] for id_, row in zip(ids, rows, strict=True))]
    path.write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["square", "condensed", "csv", "csv column", "shuffled", "npz"])
def test_it_is_scipys_correlation_of_upper_triangles(
    form: str, archive: Path, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    matrix = subjects(1)[0]
    order = np.random.default_rng(0).permutation(30)
    file = tmp_path / "neural.npy"
    if form == "square":
        np.save(file, matrix)
    elif form == "condensed":
        np.save(file, squareform(matrix))
    elif form == "csv":
        file = write_csv(tmp_path / "neural.csv", matrix, None)
    elif form == "csv column":
        file = tmp_path / "neural.csv"
        file.write_text("\n".join(map(str, matrix[UPPER])), encoding="utf-8")
    elif form == "shuffled":  # matched by id, not by order
        shuffled = matrix[np.ix_(order, order)]
        file = write_csv(tmp_path / "neural.csv", shuffled, [IDS[i] for i in order])
    else:
        file = tmp_path / "neural.npz"
        np.savez(file, rdm=matrix[np.ix_(order, order)], ids=[IDS[i] for i in order])
    found = rsa_against(archive, [file], bootstrap=20)
    for i, name in enumerate(("l0", "l1")):
        expected = spearmanr(rdm(arrays[name])[UPPER], matrix[UPPER])[0]
        assert found.value[i] == pytest.approx(expected, abs=1e-12)
        assert found.low[i] <= found.value[i] <= found.high[i]
    assert np.isnan([found.value[2], found.low[2], found.high[2], *found.ceiling]).all()
    assert "undefined, since samples have no pattern: dead" in found.notes
    assert any("'s order" in note for note in found.notes) == (form not in ("shuffled", "npz"))


def test_the_noise_ceiling_is_that_of_nili_and_others(
    archive: Path, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The mean correlation with all subjects' mean rank, and with that of the others."""
    several = subjects()
    np.save(tmp_path / "three.npy", several[:3])
    np.save(tmp_path / "fourth.npy", several[3])
    found = rsa_against(archive, [tmp_path / "three.npy", tmp_path / "fourth.npy"], bootstrap=0)
    assert found.subjects == ["three 1", "three 2", "three 3", "fourth"]
    ranks = np.array([rankdata(each[UPPER]) for each in several])
    upper = [spearmanr(own, ranks.mean(0))[0] for own in ranks]
    lower = [spearmanr(ranks[i], np.delete(ranks, i, 0).mean(0))[0] for i in range(4)]
    assert found.ceiling == pytest.approx((np.mean(lower), np.mean(upper)), abs=1e-12)
    assert found.ceiling[0] < found.ceiling[1]
    each = [spearmanr(rdm(arrays["l1"])[UPPER], subject[UPPER])[0] for subject in several]
    np.testing.assert_allclose(found.each[:, 1], each, atol=1e-12)
    assert found.value[1] == pytest.approx(np.mean(each), abs=1e-12)


@pytest.mark.slow
def test_the_command_writes_table_chart_and_page(
    archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "brain.npy", tmp_path / "out"
    np.save(file, subjects())
    words = ("similarity", str(archive), "--against", str(file), "--bootstrap", "20")
    assert main((*words, "--out", str(out))) == 0
    said = capfd.readouterr().out
    assert f"compared:   3 layers over 30 samples\nagainst:    {out}/index.html\n" in said
    assert "(4 subjects)" in said
    (dead,) = (line.split() for line in said.splitlines() if line.startswith("dead"))
    assert dead == ["dead", "undefined", "–"]
    with (out / "against.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * (1 + 4)
    found = rsa_against(archive, [file], bootstrap=20)
    assert float(rows[0]["value"]) == found.value[0]
    assert float(rows[0]["ceiling_high"]) == found.ceiling[1]
    assert [row["subject"] for row in rows[:5]] == ["all", *found.subjects]
    assert (rows[10]["layer"], rows[10]["value"], rows[10]["low"]) == ("dead", "", "")
    content = json.loads((out / "against.json").read_text(encoding="utf-8"))
    assert content["layers"][2]["value"] is None
    for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        assert (out / f"against.{kind}").read_bytes().startswith(start)
    assert "RSA against 4 subjects" in (out / "index.html").read_text(encoding="utf-8")
    assert main((*words, "--out", str(out), "--json")) == 0
    assert json.loads(capfd.readouterr().out) == content


@pytest.mark.parametrize("kind", ["csv", "npy", "npz"])
def test_an_exported_rdm_is_numpys_and_comes_back(
    kind: str, archive: Path, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "rdms"
    words = ("export", str(archive), str(out), "--rdm", "--layers", "l1", "--to", kind)
    assert main((*words, "--samples", "20:30", "0:20")) == 0
    order = [*range(20, 30), *range(20)]
    file = out / ("activations.npz" if kind == "npz" else f"l1.{kind}")
    more = {"ids": out / "samples.csv"} if kind == "npy" else {}
    (read,) = read_references([file], more.get("ids"))
    assert read.ids == [IDS[i] for i in order]
    np.testing.assert_allclose(read.rdm, rdm(arrays["l1"][order]), atol=1e-11)
    found = rsa_against(archive, [file], bootstrap=0, **more)  # type: ignore[arg-type]
    assert found.value[1] == pytest.approx(1)


def test_an_rdm_of_maps_leaves_out_what_has_no_pattern(tmp_path: Path) -> None:
    maps = random(8, 3, 4, 4)
    maps[2] = 5
    path = write_archive(tmp_path / "a", {"c": layer_of(maps)}, list("abcdefgh"), skipped=["d"])
    rest = [0, 1, 4, 5, 6, 7]
    for flags, values in (((), maps.mean((2, 3))), (("--flatten",), maps.reshape(8, -1))):
        out = tmp_path / f"out{len(flags)}"
        assert main(("export", str(path), str(out), "--rdm", "--to", "csv", *flags)) == 0
        lines = (out / "c.csv").read_text(encoding="utf-8").splitlines()
        assert lines[0] == '"id","a","b","c","e","f","g","h"'
        assert lines[3] == '"c"' + ',""' * 7  # constant: undefined
        (read,) = read_references([out / "c.csv"])
        np.testing.assert_allclose(
            read.rdm[np.ix_(read.known, read.known)], rdm(values[rest]), atol=1e-6
        )
    with Archive.open(path) as archive:
        found = rsa_against(archive, [tmp_path / "out0" / "c.csv"], bootstrap=0)
        assert (found.samples, found.value[0]) == (6, pytest.approx(1))


TABLES = {
    "numeric ids": (",10,11,12,13\n10,0,1,2,3\n11,1,0,4,5\n12,2,4,0,6\n13,3,5,6,0", "10 11 12 13"),
    "header only": ("a,b,c,d\n0,1,2,3\n1,0,4,5\n2,4,0,6\n3,5,6,0", "a b c d"),
    "first column": ("a,0,1,2,3\nb,1,0,4,5\nc,2,4,0,6\nd,3,5,6,0", "a b c d"),
    "R": ("a,b,c,d\na,0,1,2,3\nb,1,0,4,5\nc,2,4,0,6\nd,3,5,6,0", "a b c d"),
    "semicolons": ("0;1;2;3\n1;0;4;5\n2;4;0;6\n3;5;6;0", None),
    "empty diagonal": (",1,2,3\n1,,4,5\n2,4,,6\n3,5,6,", None),
    "numeric ids, empty diagonal": (
        ",10,11,12,13\n10,,1.0,2.0,3.0\n11,1.0,,4.0,5.0\n12,2.0,4.0,,6.0\n13,3.0,5.0,6.0,",
        "10 11 12 13",
    ),
    "numeric ids, upper": (",10,11,12,13\n10,,1,2,3\n11,,,4,5\n12,,,,6\n13,,,,", "10 11 12 13"),
    "numeric ids, lower": (",1,2,3,4\n1,,,,\n2,1,,,\n3,2,4,,\n4,3,5,6,", "1 2 3 4"),
    "a name in the corner": ("id,1,2,3,4\n1,,1,2,3\n2,1,,4,5\n3,2,4,,6\n4,3,5,6,", "1 2 3 4"),
    "NumPy, no diagonal": ("nan,1,2,3\n1,nan,4,5\n2,4,nan,6\n3,5,6,nan", None),
    "R, no diagonal": ("NA,1,2,3\n1,NA,4,5\n2,4,NA,6\n3,5,6,NA", None),
    "R with ids": (
        '"","a","b","c","d"\n"a",NA,1,2,3\n"b",1,NA,4,5\n"c",2,4,NA,6\n"d",3,5,6,NA',
        "a b c d",
    ),
    "upper": ("0,1,2,3\n,0,4,5\n,,0,6\n,,,0", None),
    "upper alone": (",1,2,3\n,,4,5\n,,,6\n,,,", None),
    "lower alone": (",,,\n1,,,\n2,4,,\n3,5,6,", None),
    "spaces": ("0 1 2 3\n1 0 4 5\n2 4 0 6\n3 5 6 0", None),
    "one row": ("1,2,3,4,5,6", None),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_all_kinds_are_read(name: str, tmp_path: Path) -> None:
    text, ids = TABLES[name]
    path = tmp_path / ("t.csv" if "," in text else "t.txt")
    path.write_text(text, encoding="utf-8")
    (found,) = read_references([path])
    assert found.rdm[np.triu_indices(4, 1)].tolist() == [1, 2, 3, 4, 5, 6]
    assert (found.rdm == found.rdm.T).all()
    assert found.ids == (ids.split() if ids else None)


def test_what_is_no_rdm_is_said(archive: Path, tmp_path: Path) -> None:
    good = subjects(1)[0]
    holed, skew = good.copy(), good.copy()
    holed[3, 4] = holed[4, 3] = np.nan
    skew[3, 4] += 1
    flat = 1 - np.eye(30)
    others = [f"x{i}" for i in range(30)]
    cases: list[tuple[object, str]] = [
        (1 - good, "its diagonal is not 0 but up to 1; an RDM holds dissimilarities"),
        (skew, "is not symmetric"), (holed, "row 3, column 4 .* is not finite"),
        (good[:20, :20], "the RDM has 20 samples and no ids, but .* has 30 samples; pass"),
        (good[0, :5], "5 numbers are no upper triangle"), (good[:4, :5], "5 numbers are no upper"),
        (np.zeros((2, 3, 4)), r"its shape is \(2, 3, 4\)"), (np.zeros((0, 0)), "shape"),
        (good.astype(complex), "holds complex128"), (flat, "all dissimilarities .* are equal"),
        (np.array(["a"]), "holds <U1"), (np.array([None]), "cannot be read as an RDM"),
    ]  # fmt: skip
    for number, (array, said) in enumerate(cases):
        path = tmp_path / f"{number}.npy"
        np.save(path, array, allow_pickle=True)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=said):
            rsa_against(archive, [path], bootstrap=0)
    write_csv(tmp_path / "others.csv", good, others)
    write_csv(tmp_path / "twice.csv", good, ["same", "same", *others[2:]])
    (tmp_path / "text.csv").write_text("no numbers here", encoding="utf-8")
    (tmp_path / "ids.txt").write_text("\n".join(IDS[:7]), encoding="utf-8")
    np.save(tmp_path / "good.npy", good)
    for name, more, said in (
        ("others.csv", {}, "0 samples in common .*first ids are x0 and 0000"),
        ("twice.csv", {}, "id same is given twice"), ("text.csv", {}, "cannot be read as an RDM"),
        ("none.npy", {}, "No such file"), ("none.mat", {}, "does not end in .npy"),
        ("good.npy", {"ids": tmp_path / "ids.txt"}, "of 30 samples, but 7 ids"),
        ("good.npy", {"over": "positions"}, "over samples, not positions"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            rsa_against(archive, [tmp_path / name], bootstrap=0, **more)  # type: ignore[arg-type]
    for options, said in (
        ({"samples": 3}, "samples must be at least 4, got 3"),
        ({"samples": 8, "seed": -1}, "seed must be at least 0, got -1"),
        ({"bootstrap": -1}, "bootstrap must be at least 0, got -1"),
    ):
        with pytest.raises(ConfigError, match=said):
            rsa_against(archive, tmp_path / "good.npy", **options)  # type: ignore[arg-type]
    words = ("similarity", str(archive), "--against", str(tmp_path / "good.npy"))
    assert main((*words, "--measures", "cka")) == 2
    assert main(("similarity", str(archive), "--ids", str(tmp_path / "ids.txt"))) == 2


def test_ids_are_compared_as_archives_store_them(archive: Path, tmp_path: Path) -> None:
    """As text in composed form; file names on a Mac are decomposed."""
    matrix = subjects(1)[0]
    names = [f"caf\u00e9 {i}" for i in range(30)]
    accented = write_archive(tmp_path / "a", {"x": layer_of(random(30, 5))}, names)
    decomposed = [unicodedata.normalize("NFD", name) for name in names]
    write_csv(tmp_path / "r.csv", matrix, decomposed)
    results = [
        rsa_against(accented, source, ids=ids, bootstrap=0)
        for source, ids in ((matrix, names), (matrix, decomposed), (tmp_path / "r.csv", None))
    ]
    assert [result.samples for result in results] == [30] * 3
    assert len({result.value[0] for result in results}) == 1
    numbered = write_archive(
        tmp_path / "n", {"x": layer_of(random(30, 5))}, list(map(str, range(30)))
    )
    order = np.random.default_rng(0).permutation(30)
    again = rsa_against(numbered, matrix[np.ix_(order, order)], ids=order, bootstrap=0)
    assert again.value[0] == results[0].value[0]


@pytest.mark.parametrize("kind", ["bytes", "lines"])
def test_ids_may_be_bytes_or_hold_commas(kind: str, tmp_path: Path) -> None:
    ids = [f"küche, {i}.png" for i in range(5)]
    matrix, more = 1 - np.eye(5), {}
    if kind == "bytes":  # as from MATLAB or HDF5
        np.savez(tmp_path / "r.npz", rdm=matrix, ids=np.array([id_.encode() for id_ in ids]))
    else:
        np.savez(tmp_path / "r.npz", rdm=matrix)
        more = {"ids": tmp_path / "ids.txt"}
        more["ids"].write_text("\n".join([*ids[:4], f'"{ids[4]}"', ""]), encoding="utf-8")
    (found,) = read_references([tmp_path / "r.npz"], **more)
    assert found.ids == ids


def test_arrays_are_read_as_files_are(archive: Path, tmp_path: Path) -> None:
    matrices = subjects(2)
    np.save(tmp_path / "a.npy", matrices[0])
    np.save(tmp_path / "b.npy", matrices[1][::-1, ::-1])
    (tmp_path / "ids.txt").write_text("\n".join(IDS[::-1]))
    by_files = rsa_against(archive, tmp_path / "b.npy", ids=tmp_path / "ids.txt")
    reversed_array = rsa_against(archive, matrices[1][::-1, ::-1], ids=IDS[::-1])
    np.testing.assert_array_equal(by_files.each, reversed_array.each)
    mixed = rsa_against(archive, [matrices[1], tmp_path / "a.npy"])
    assert mixed.subjects == ["array 0", "a"]
    np.testing.assert_array_equal(by_files.each[0], mixed.each[0])
    with pytest.raises(ConfigError, match=r"^array 0: its shape is \(2, 30, 9\)"):
        rsa_against(archive, matrices[:, :, :9])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "files: no RDM is given; give a path or an array"),
        (None, "files: must be paths or NumPy arrays, got NoneType"),
        ([[0, 1], [1, 0]], "files: must be paths or NumPy arrays, got list"),
        (torch.zeros(30, 30), "files: must be paths or NumPy arrays, got Tensor"),
    ],
)
def test_what_is_no_file_and_no_array(archive: Path, files: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        rsa_against(archive, files)


def test_subjects_with_files_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for folder, matrix in zip("ab", subjects(2), strict=True):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "rdm.npy", matrix)
    np.save(tmp_path / "c.npy", subjects(2))
    files = [tmp_path / "a" / "rdm.npy", tmp_path / "b" / "rdm.npy", tmp_path / "c.npy"]
    expected = [f"{tmp_path}/a/rdm", f"{tmp_path}/b/rdm", "c 1", "c 2"]
    assert [of.name for of in read_references(files)] == expected


def test_samples_left_out_are_said(tmp_path: Path) -> None:
    values = random(12, 6)
    values[3, 2], values[5] = np.nan, 1
    np.save(tmp_path / "r.npy", rdm(random(12, 30, seed=1)))
    found = rsa_against(archive_of(tmp_path / "a", {"x": values}), tmp_path / "r.npy", bootstrap=0)
    text = "10 of 12 samples are used; the others are constant, or not finite, in a layer"
    assert text in found.notes


def test_a_random_part_of_the_samples_is_noted(
    archive: Path, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.similarity import measures

    monkeypatch.setattr(measures, "_MOST_STIMULI", 12)
    found = rsa_against(archive, subjects(1)[0], bootstrap=0)
    assert found.samples == 12
    assert "a random 12 of 30 samples" in found.notes
    assert not any("not finite" in note for note in found.notes)
    drawn = np.sort(np.random.default_rng(0).choice(30, 12, replace=False))
    upper = np.triu_indices(12, 1)
    rdms = (rdm(arrays["l0"])[np.ix_(drawn, drawn)], subjects(1)[0][np.ix_(drawn, drawn)])
    assert found.value[0] == pytest.approx(spearmanr(*(each[upper] for each in rdms))[0], abs=1e-12)
