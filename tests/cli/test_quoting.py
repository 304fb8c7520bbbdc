"""Paths and texts on the command line mean what was typed, not what Hydra reads in them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.cli.main import main
from pipeline.cli.quoting import quoted
from pipeline.common.errors import ConfigError
from tests.conftest import Run, photo

NAMES = [
    "Größe", "日本", "[x]", "it's", "{a}", "#1", "C&A", "a,b", "true", "1e3", "null", "007", "a=b",
    "epoch=9-step=100.ckpt", "Fotos (1)", "$HOME", "${HOME}", r"a\${b}", "50%", "a\\b", "back\\",
    "-x", "trail ", " lead", "😀", "new\nline", "'q'", "a:b", "choice(a,b)", "]", "[a,b]",
    "{a: b}", "a\\,b", "+1", ".5", "inf", "1_000", "a;b", "`x`", "it\\'s\\\\",
]  # fmt: skip


def values(word: str) -> list[object]:
    """Return what Hydra reads of an override, every value of a sweep, interpolations resolved."""
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return [plain(override.value())]
    words = [f"key={text}" for text in override.sweep_string_iterator()]
    return [plain(OverridesParser.create().parse_override(each).value()) for each in words]


def plain(value: object) -> object:
    return OmegaConf.to_container(OmegaConf.create({"x": value}), resolve=True)["x"]  # type: ignore[index, call-overload]


def test_an_existing_path_is_that_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    alphabet = "ab'\"\\[]{}(),=: $é日#%&1e3.\n\t-+😀"
    names = ["".join(draw.choices(alphabet, k=draw.randint(1, 8))) for _ in range(25)]
    for name in dict.fromkeys((*NAMES, *(name for name in names if name.strip(".")))):
        Path(name).mkdir()
        for sweep in (False, True):
            key = draw.choice(["dataset.root", "hydra.run.dir", "+archive", "model.weights"])
            word = quoted(f"{key}={name}", "run", sweep=sweep)
            nulls = key in ("+archive", "model.weights") and name == "null"
            assert values(word) == [None if nulls else name], word
        Path(name).rmdir()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("null", "'q'", "a\\,b")])
def test_a_new_folder_is_what_was_typed(name: str) -> None:
    if "${" not in name:  # an interpolation, where no such path exists
        assert values(quoted(f"archive={name}", "run", sweep=False)) == [name]


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_list_are_what_was_typed(name: str) -> None:
    if name in ("back\\", "[x]", "{a}", "'q'", "a,b", "a\\,b", "]", "[a,b]") or "${" in name:
        return  # grammar of lists
    assert values(quoted(f"render.samples=[a,{name}]", "render", sweep=False)) == [
        ["a", name.strip()]
    ]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("dataset.root=it's,#1", ["it's", "#1"]),
        ("dataset.root=a,b,c", ["a", "b", "c"]),
        ("dataset.root=Fotos, 1,c", ["Fotos, 1", "c"]),
        ("dataset.root='x,y',[z]", ["x,y", "[z]"]),
        ("layers.include=[a[0],b],c", [["a[0]", "b"], "c"]),
        ("model.name=choice(a,b)", ["a", "b"]),
        ("seed=1,2", [1, 2]),
        ("seed=range(0,2)", [0, 1]),
        ("model.weights=null,w.pt", [None, "w.pt"]),
    ],
)
def test_commas_of_a_sweep(
    word: str, expected: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c", "a,b", "Fotos, 1", "it's", "#1"):
        Path(name).mkdir()
    assert values(quoted(word, "run", sweep=True)) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("archive=${oc.env:HYDRA_TEST}/it's", "here/it's"),
        ("model.weights=epoch\\=9.ckpt", "epoch=9.ckpt"),
        ("model.weights='epoch=9.ckpt'", "epoch=9.ckpt"),
        ("model.weights=null", None),
        ("model.name=1e3", "1e3"),
        ("layers.include=encoder.layers.*.attention[0]", "encoder.layers.*.attention[0]"),
        ("layers.aliases={conv1: Größe, fc: 1e3}", {"conv1": "Größe", "fc": "1e3"}),
        ("layers.aliases.fc=it's", "it's"),
        ("layers.aliases={relu:0: first, 'relu:1': b}", {"relu:0": "first", "relu:1": "b"}),
        ("layers.aliases={}", {}),
        (r"model.axes={'re:a\[0\]:1': tokens}", {r"re:a\[0\]:1": "tokens"}),
        ("model.axes={layer[key]: tokens}", {"layer[key]": "tokens"}),
        (r"model.axes={relu\:0: tokens}", {"relu:0": "tokens"}),
        ("reduction.layers={relu:0: cls_token}", {"relu:0": "cls_token"}),
        ("storage_options={url: http://a:90}", {"url": "http://a:90"}),
        (r"layers.include=[re:a\[0\],re:b{1,2}\(]", [r"re:a\[0\]", r"re:b{1,2}\("]),
        ("model.arguments={depth: 3, name: [Größe]}", {"depth": 3, "name": ["Größe"]}),
        ("model.arguments.depth=3", 3),
        ("dataset.arguments.data_dir=/data/Größe", "/data/Größe"),
        ("dataset.delimiter=,", ","),
        ("dataset.shards=t/{0,1}-{000..002}.tar", "t/{0,1}-{000..002}.tar"),
    ],
)
def test_what_is_no_path_keeps_its_meaning(
    word: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_TEST", "here")
    assert values(quoted(word, "run", sweep=False)) == [expected]


def test_words_that_hydra_reads_are_left_alone() -> None:
    for word in (
        "model=resnet18", "~renderers.pca", "layers.include=[conv1,fc]", "seed=3", "dataset.root=a",
        "hydra.run.dir=outputs/${now:%Y-%m-%d}", "layers@_global_.layers=convs", "--cfg",
        "hydra.launcher.n_jobs=2", "loader.batch_size=8",
    ):  # fmt: skip
        assert quoted(word, "run", sweep=False) == word


def test_several_values_outside_a_sweep_are_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"several values need a sweep; add -m.* 'model.weights="
    ) as caught:
        quoted("model.weights=a.pt,b.pt", "run", sweep=False)
    word = str(caught.value).rpartition(": ")[2]
    assert word == "'model.weights='\"'\"'a.pt,b.pt'\"'\"''"
    assert values(quoted("model.weights='a.pt,b.pt'", "run", sweep=False)) == ["a.pt,b.pt"]
    with pytest.raises(ConfigError, match="missing closing bracket"):
        quoted("layers.include=[a", "run", sweep=False)


@pytest.mark.slow
def test_odd_folders_are_extracted_and_drawn(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    roots = ["C&A, it's [1]=Größe", "1e3"]
    for root in roots:
        Path(root).mkdir()
        Image.fromarray(photo(0)).save(Path(root) / "日本 #1.png")
    words = ("model=tiny", "device=cpu", "dataset=flat_folder", "loader.num_workers=0")
    draw = ("render.samples=[日本 #1.png]", "renderers=pca", "render.num_workers=0")
    code, out, err = run("run", *words, f"dataset.root={roots[0]}", *draw, folder="a (1) {é}")
    assert code == 0, err
    assert f"serve '{tmp_path}/a (1) {{é}}/archive'" in out
    with Archive.open(tmp_path / "a (1) {é}") as archive:
        assert [sample.id for sample in archive.samples] == ["日本 #1.png"]
    assert run("info", f"archive={tmp_path / 'a (1) {é}'}")[0] == 0
    swept = (f"dataset.root={','.join(roots)}", "hydra.sweep.dir=s (2)")
    assert main(["extract", "-m", *words, *swept]) == 0
    assert "2 of 2 jobs done" in capfd.readouterr().out
