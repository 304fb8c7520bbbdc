"""Derived layers: what is written back is read back, and every view works on it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse as scipy_sparse
from starlette.testclient import TestClient

from pipeline import Archive, Grid, TimmModel, add_layer, export, render, similarity
from pipeline.archive.tools.info import archive_facts, describe
from pipeline.archive.tools.provenance import citation
from pipeline.archive.tools.verify import verify
from pipeline.capture.selector import LayerSelector
from pipeline.common.arrays import Array
from pipeline.common.errors import ArchiveBusyError, ConfigError
from pipeline.datasets.synthetic import Synthetic
from pipeline.explorer.app import make_app
from pipeline.explorer.collection import Collection
from pipeline.extraction import add_layer as module
from pipeline.extraction import derived_rows
from pipeline.extraction.extract import extract
from pipeline.extraction.reductions.subsets import RandomPositions
from pipeline.extraction.settings import Storage
from pipeline.renderers.top_samples import TopSamples
from pipeline.training.activation_loader import ActivationLoader
from scripts.synthetic_archive import layer_of, write_archive
from tests.conftest import Run, tiny_extraction
from tests.helpers.object_store import BUCKET
from tests.helpers.small_vit import SMALL

COUNT, TOKENS, WIDTH, FEATURES = 9, 17, 24, 40
WEIGHTS = np.random.default_rng(6).normal(size=(WIDTH, FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit") / "archive"
    extract(tiny_extraction(
        path, model=TimmModel(name="vit_tiny_patch16_224", weights=None, arguments=SMALL),
        dataset=Synthetic(samples=COUNT), layers=LayerSelector(include=("blocks.0", "blocks.1")),
    ))  # fmt: skip
    return path


def encoded(tokens: Array) -> Array:
    """Return sparse codes: the five largest of random projections of every token."""
    codes = tokens @ WEIGHTS
    codes[codes < np.sort(codes, axis=-1)[..., -5, None]] = 0
    return np.maximum(codes, 0)


@pytest.fixture(scope="module")
def codes(vit: Path) -> Array:
    with Archive.open(vit) as archive:
        return encoded(archive.layers["blocks.1"][:])


@pytest.fixture(scope="module")
def coded(vit: Path, codes: Array, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of the codes, written in batches of other sizes than shards and pages."""
    batches = (codes[start : start + 4] for start in range(0, COUNT, 4))
    to = tmp_path_factory.mktemp("coded") / "codes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_BYTES", 3 * codes[0].nbytes)
        made = add_layer(vit, "codes", batches, like="blocks.1", to=to, codec="gzip")
    assert made == to
    return to


def test_rows_samples_and_statistics_are_stored(vit: Path, coded: Path, codes: Array) -> None:
    result = verify(str(coded))
    assert (result["samples"], result["shards"], result["nonfinite"]) == (COUNT, 3, {"codes": 0})
    with Archive.open(vit) as first, Archive.open(coded) as archive:
        layer = archive.layers["codes"]
        np.testing.assert_array_equal(layer[:], codes)
        assert list(archive.samples) == list(first.samples)
        for row in range(COUNT):
            np.testing.assert_array_equal(archive.image(row), first.image(row))
        assert archive.complete.pixels_sha256 == first.complete.pixels_sha256
        kept = ("axes", "grid", "prefix_tokens", "class_token", "positions")
        like = first.layers["blocks.1"].entry
        assert [getattr(layer.entry, name) for name in kept] == [
            getattr(like, name) for name in kept
        ]
        patches = codes[:, 1:].astype(np.float64)
        for name, expected in (
            ("mean", patches.mean((0, 1))), ("std", patches.std((0, 1))),
            ("max", patches.max((0, 1))), ("zero_fraction", (patches == 0).mean((0, 1))),
        ):  # fmt: skip
            np.testing.assert_allclose(layer.statistics[name], expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(layer.sample_max, codes[:, 1:].max(1))
        np.testing.assert_allclose(layer.sample_mean, patches.mean(1), rtol=1e-5, atol=1e-7)


def test_the_archive_opens_alone_and_names_the_first(
    coded: Path, vit: Path, tmp_path: Path, run: Run
) -> None:
    shutil.copytree(coded, tmp_path / "alone")
    verify(tmp_path / "alone")
    facts = archive_facts(tmp_path / "alone")
    with Archive.open(vit) as first:
        fingerprint = first.manifest.fingerprint
    assert facts["derived_from"] == {
        "archive": str(vit), "fingerprint": fingerprint, "layer": "blocks.1"
    }  # fmt: skip
    assert f"derived   from {vit}, fingerprint {fingerprint[:16]}…" in describe(facts)
    with Archive.open(tmp_path / "alone") as archive:
        assert f"from archive {fingerprint}, layer blocks.1" in citation(archive)
    code, _, err = run("reproduce", str(tmp_path / "alone"), str(tmp_path / "again"))
    assert code == 2
    assert f"rows derived from another, {vit}, by a program" in err


def test_the_same_rows_give_the_same_bytes_and_others_another_fingerprint(
    vit: Path, codes: Array, tmp_path: Path
) -> None:
    several = codes, torch.from_numpy(codes), codes + 1
    paths = [add_layer(vit, "codes", rows, to=tmp_path / str(i)) for i, rows in enumerate(several)]
    files = [path / "shards" / "00000.h5" for path in paths]
    assert files[0].read_bytes() == files[1].read_bytes()
    prints = [json.loads((path / "manifest.json").read_text())["fingerprint"] for path in paths]
    assert prints[0] == prints[1] != prints[2]


def debiased_cka(x: Array, y: Array) -> float:
    """Return debiased linear CKA by the unbiased HSIC of Song et al. (2012), equation 5."""
    grams = [a @ a.T for a in (x.astype(np.float64), y.astype(np.float64))]
    for gram in grams:
        np.fill_diagonal(gram, 0)

    def hsic(k: Array, m: Array) -> float:
        n, one = len(k), np.ones(len(k))
        sums = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        cross = 2 / (n - 2) * one @ k @ m @ one
        return float((np.trace(k @ m) + sums - cross) / (n * (n - 3)))

    k, m = grams
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_codes_are_compared_with_the_layer(vit: Path, coded: Path, codes: Array) -> None:
    result = similarity([vit, coded], layers=["blocks.1", "codes"], bootstrap=0)
    with Archive.open(vit) as archive:
        layer = archive.layers["blocks.1"][:, 1:].mean(1)
    expected = debiased_cka(layer, codes[:, 1:].mean(1))
    np.testing.assert_allclose(result.matrix("cka")[0, 1], expected, rtol=1e-5)


def test_every_view_works_on_the_codes(
    vit: Path, coded: Path, codes: Array, tmp_path: Path
) -> None:
    patches = codes[:, 1:]
    feature = int(patches.max((0, 1)).argmax())
    strongest = int(patches[..., feature].max(1).argmax())
    with Archive.open(vit) as first, Archive.open(coded) as archive:
        with TestClient(make_app(Collection([first, archive]))) as client:
            key = coded.name
            page = client.get(f"/a/{key}/layer/codes/unit/{feature}").text
            top = re.findall(r"/sample/(\d{6})", page)
            assert int(top[0]) == strongest
            y, x = divmod(int(patches[strongest, :, feature].argmax()), 4)
            place = f"/a/{key}/at/{strongest}/codes?y={y}&x={x}"
            assert client.get(place).status_code == 200
            drawn = f"/a/{key}/draw/driven.png?layer=codes&channel={feature}"
            assert client.get(drawn).headers["content-type"] == "image/png"
        rendered = render(
            archive, tmp_path / "drawn",
            {"grid": Grid(max_channels=4), "top_samples": TopSamples(count=2, samples=3)},
        )  # fmt: skip
        assert len(rendered.pictures(archive.samples[0])) == len(rendered.of_archive) == 1
        export(archive, tmp_path / "arrays", "npy")
        [file] = (tmp_path / "arrays").glob("*.npy")
        np.testing.assert_array_equal(np.load(file), codes)
        about = json.loads((tmp_path / "arrays" / "provenance.json").read_text())
        assert about["derived_from"]["layer"] == "blocks.1"
        np.testing.assert_array_equal(archive.to_xarray()["layers/codes/activation"].values, codes)
    loader = ActivationLoader(coded, "codes", 3, tokens="patch", shuffle="none")
    vectors = np.concatenate([batch.activations["codes"] for batch in loader])
    np.testing.assert_array_equal(vectors, patches.reshape(-1, FEATURES))
    loader.close()


GRID_MAPS = np.random.default_rng(1).normal(size=(12, 3, 2, 5)).astype(np.float32)
SKIPPED = (0, 5, 6, 11)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of maps, skipping its first and last sample and two in a row."""
    ids = [f"{row:02}" for row in range(len(GRID_MAPS))]
    pixels = np.random.default_rng(2).integers(0, 256, (12, 3, 8, 8), dtype=np.uint8)
    tokens = GRID_MAPS.reshape(12, 3, 10).transpose(0, 2, 1)
    return write_archive(
        tmp_path_factory.mktemp("maps") / "maps",
        {"maps": layer_of(GRID_MAPS), "strip": layer_of(tokens)}, ids,
        labels=list(range(12)), skipped=[ids[row] for row in SKIPPED], shards=3,
        images=lambda start, stop: pixels[start:stop],
    )  # fmt: skip


STORED = np.delete(np.arange(12), SKIPPED)


@pytest.mark.parametrize("kind", ["all rows", "stored rows", "ones", "fives", "one batch"])
def test_skipped_samples_stay_skipped(maps: Path, kind: str, tmp_path: Path) -> None:
    values = np.arange(12 * 7, dtype=np.float32).reshape(12, 7)
    size = {"ones": 1, "fives": 5}.get(kind, 99)
    buffer = np.empty((size, 7), np.float32)

    def reused() -> Iterator[Array]:
        for start in range(0, len(STORED), size):
            block = values[STORED[start : start + size]]
            buffer[: len(block)] = block
            yield buffer[: len(block)]

    rows: Any = {"all rows": values, "stored rows": values[STORED]}.get(kind, reused())
    path = add_layer(maps, "logits", rows, to=tmp_path / "x")
    assert kind != "fives" or verify(path)["skipped"] == 4
    with Archive.open(path) as archive, Archive.open(maps) as first:
        assert list(archive.samples) == list(first.samples)
        assert archive.layers["logits"].axes == ("sample", "channel")
        expected = values.copy()
        expected[list(SKIPPED)] = np.nan
        np.testing.assert_array_equal(archive.layers["logits"][:], expected)
        wide = values[STORED].astype(np.float64)
        figures = archive.layers["logits"].statistics
        np.testing.assert_allclose(figures["std"], wide.std(0), rtol=1e-6)
        assert figures["count"].tolist() == [8] * 7


@pytest.mark.parametrize(
    ("shape", "like", "axes", "grid"),
    [
        ((3, 2, 5), "maps", ("channel", "height", "width"), (2, 5)),
        ((1, 2, 5), None, ("channel", "height", "width"), (2, 5)),  # a mask
        ((10, 4), "maps", ("token", "channel"), (2, 5)),
        ((10, 4), "strip", ("token", "channel"), (1, 10)),
        ((9, 4), None, ("token", "channel"), (1, 9)),
        ((6,), "maps", ("channel",), None),
    ],
)
def test_axes_are_those_of_a_layer_with_the_same_positions(
    maps: Path, shape: tuple[int, ...], like: str | None, axes: tuple[str, ...], grid: object,
    tmp_path: Path,
) -> None:  # fmt: skip
    values = np.random.default_rng(3).normal(size=(8, *shape)).astype(np.float32)
    path = add_layer(maps, "x", values, like=like, to=tmp_path / "x")
    with Archive.open(path) as archive:
        entry = archive.layers["x"].entry
        assert (entry.axes, entry.spatial_shape) == (axes, grid)
        np.testing.assert_array_equal(archive.layers["x"][STORED.tolist()], values)


def test_patch_tokens_of_a_vit_lie_on_its_grid(vit: Path, codes: Array, tmp_path: Path) -> None:
    with Archive.open(add_layer(vit, "patches", codes[:, 1:], to=tmp_path / "p")) as archive:
        entry = archive.layers["patches"].entry
        assert (entry.grid, entry.prefix_tokens, entry.class_token) == ((4, 4), 0, False)


def test_drawn_positions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "drawn"
    extract(tiny_extraction(path, reduction=RandomPositions(count=5, seed=3)))
    with Archive.open(path) as first:
        rows = first.layers["conv1"][:] * 2
        with Archive.open(add_layer(path, "x", rows, like="conv1")) as archive:
            np.testing.assert_array_equal(
                archive.layers["x"].position, first.layers["conv1"].position
            )


BF16 = torch.from_numpy(GRID_MAPS[STORED, 0, 0]).bfloat16()


@pytest.mark.parametrize(
    ("rows", "dtype", "expected"),
    [
        (GRID_MAPS[STORED, 0, 0].astype(np.float16), "float16", None),
        (BF16, "bfloat16", BF16.float().numpy()),
        (GRID_MAPS[STORED, 0, 0] > 0, "float32", None),
        (np.arange(40, dtype=np.uint16).reshape(8, 5), "float32", None),
        (np.arange(40).reshape(8, 5)[::-1, ::-1], "float32", None),
        ([[[1, 2]]] * 8, "float32", np.array([[1, 2]] * 8)),
        ([torch.eye(8).to_sparse()], "float32", np.eye(8)),
        (torch.eye(8, requires_grad=True), "float32", np.eye(8)),
    ],
)
def test_types_of_rows(maps: Path, rows: Any, dtype: str, expected: Any, tmp_path: Path) -> None:
    path = add_layer(maps, "x", rows, codec="zstd", to=tmp_path / "x")
    with Archive.open(path) as archive:
        layer = archive.layers["x"]
        assert layer.entry.dtype == dtype
        values = np.asarray(rows if expected is None else expected, np.float32)
        np.testing.assert_array_equal(layer[STORED.tolist()].astype(np.float32), values)


@pytest.mark.parametrize(
    "kind", ["to_sparse", "to_sparse_csr", "to_sparse_csc", "coo_matrix", "bsr_array", "dia_array"]
)
@pytest.mark.filterwarnings("ignore:Sparse CS:UserWarning")
def test_sparse_rows_are_read_in_blocks(
    maps: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived_rows, "_BLOCK_BYTES", 100)  # three rows
    eye = torch.eye(8)
    rows = getattr(eye, kind)() if hasattr(eye, kind) else getattr(scipy_sparse, kind)(eye.numpy())
    with Archive.open(add_layer(maps, "eye", rows, to=tmp_path / "eye")) as archive:
        np.testing.assert_array_equal(archive.layers["eye"][STORED.tolist()], eye)


def test_another_layer_is_rows(maps: Path, tmp_path: Path) -> None:
    with Archive.open(maps) as first:
        path = add_layer(first, "copy", first.layers["maps"], to=tmp_path / "copy")
    result = similarity([maps, path], layers=["maps", "copy"], over="flatten", bootstrap=0)
    np.testing.assert_allclose(result.matrix("cka"), 1, atol=1e-6)


@pytest.mark.parametrize("inputs", ["jpeg", "none"])
def test_inputs_are_copied_as_they_are_stored(tmp_path: Path, inputs: Any) -> None:
    path = tmp_path / "a"
    extract(tiny_extraction(path, storage=Storage(inputs=inputs, shard_samples=3)))
    made = add_layer(path, "x", np.ones((7, 2)))
    verify(made)
    with Archive.open(path) as first, Archive.open(made) as archive:
        assert archive.manifest.inputs == inputs
        assert archive.complete.pixels_sha256 == first.complete.pixels_sha256 != ""
        for row in range(7 if inputs == "jpeg" else 0):
            assert archive.jpeg(row) == first.jpeg(row)


def test_an_archive_in_an_object_store(s3: Any, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/run/first"
    extract(tiny_extraction(url))
    made = add_layer(url, "x", np.ones((7, 2)))
    assert str(made) == f"{url}-x"
    with Archive.open(made) as archive:
        np.testing.assert_array_equal(archive.layers["x"][:], 1)
    local = add_layer(url, "y", np.ones((7, 2)), to=tmp_path / "y")
    with Archive.open(local) as archive, Archive.open(url) as first:
        np.testing.assert_array_equal(archive.image(6), first.image(6))


def fails_late() -> Iterator[Array]:
    yield np.ones((5, 2))
    raise KeyError("the caller's")


@pytest.mark.parametrize(
    ("rows", "options", "text"),
    [
        (np.ones((9, 2)), {}, r"rows: 9, but .*maps has 8 stored samples$"),
        ([np.ones((9, 2))], {}, r"rows: 9 or more, but the archive has 8 stored samples; give"),
        ([np.ones((7, 2))], {}, r"rows: 7, but the archive has 8 stored samples$"),
        ([], {}, r"rows: 0, but the archive has 8 stored samples$"),
        ([np.ones((7, 2)), np.ones((1, 3))], {}, r"float32\(3,\) at stored sample 7, but float32"),
        ([np.ones((7, 2)), np.ones((1, 2), np.float16)], {}, "float16.* at stored sample 7"),
        (["abc"] * 8, {}, r"rows: a batch must be numbers \(sample, …\), got str of shape"),
        ([np.ones(8)], {}, r"rows: a batch must be numbers .*of shape \(8,\), float64"),
        (np.ones((8, 0)), {}, r"of shape \(8, 0\), float64"),
        (np.ones((8, 2), complex), {}, "complex128"),
        (np.full((8, 2), 1e300), {}, "float64 values exceed float32's range"),
        ([[[1], [1, 2]]], {}, "rows: a batch must be numbers"),
        (8, {}, "rows: give an array or batches of them, not int"),
        ({"x": 1}, {}, "rows: give an array or batches of them, not dict"),
        (np.ones((8, 11, 4)), {"like": "maps"}, r"\(11, 4\) do not have the positions of maps \(3"),
        (np.ones((8, 10, 4)), {}, r"rows: \(10, 4\) fits several layers of .*; set like="),
        (np.ones((8, 2, 2, 2, 2)), {}, "fit no layer of .*; use up to three axes"),
        (np.ones((8, 2)), {"like": "mapz"}, "no layer 'mapz'; did you mean maps"),
        (np.ones((8, 2)), {"codec": "lzma"}, "codec 'lzma'; choose from: none, gzip, zstd"),
        (fails_late(), {}, "the caller's"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_leave_nothing_behind(
    maps: Path, rows: Any, options: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, KeyError), match=text):
        add_layer(maps, "x", rows, to=tmp_path / "x", **options)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_call_left_is_replaced(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing the folder is left out, as by SIGKILL."""
    to, rows = tmp_path / "codes", np.arange(16.0).reshape(8, 2)

    def killed() -> Iterator[Array]:
        yield rows[:3]
        with pytest.raises(ArchiveBusyError, match="another process is writing this archive"):
            add_layer(maps, "codes", rows, to=to)  # while this call writes
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.shutil, "rmtree", lambda *_, **__: None)
        add_layer(maps, "codes", killed(), to=to)
    assert (to / "manifest.json").exists()
    assert add_layer(maps, "codes", -rows, to=to) == to
    verify(to)
    with Archive.open(to) as archive:
        np.testing.assert_array_equal(archive.layers["codes"][archive.stored], -rows)


def test_existing_archives_and_odd_names(maps: Path, tmp_path: Path) -> None:
    maps = shutil.copytree(maps, tmp_path / "run.1")

    def make(name: str, to: Path | None = None) -> Path:
        return Path(str(add_layer(maps, name, np.ones((8, 2)), to=to)))

    assert make("codes") == tmp_path / "run.1-codes"
    odd = make("probe/β: 1")
    with Archive.open(odd) as archive:
        np.testing.assert_array_equal(archive.layers["probe/β: 1"][1], [1, 1])
    verify(odd)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"to: .* exists; remove it, or set to="):
        make("probe/β: 1")
    with pytest.raises(ConfigError, match=r"to: .*run.1 exists"):
        make("x", to=maps)
    for name in ("", "a\0b", "a\nb"):
        with pytest.raises(ConfigError, match="not a printable name"):
            make(name)
    assert sorted(tmp_path.rglob("*")) == before
